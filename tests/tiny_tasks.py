"""Small tasks that can be learnt, in the layouts of their owners, and a small model to learn them.

Each text holds one sign that tells its class; entities and answers are always the same signs.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.finetune.tasks import TASKS
from lert_ds.modeling_lert import LertModel

SIGNS = [chr(0x4E00 + number) for number in range(60)]
FILLERS, TELLING = SIGNS[:30], SIGNS[30:45]
PERSON, PLACE, ANSWER = SIGNS[45:47], SIGNS[47:48], "".join(SIGNS[48:50])
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIGNS, *"，。？、", *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
]  # fmt: skip
POSITIONS = 64
Texts = list[tuple[str, str, int]]


def texts(count: int, classes: int, seed: int) -> Texts:
    """Return a text, a second one, and the class that a sign in the first tells."""
    generator = np.random.default_rng(seed)

    def stretch() -> list[str]:
        return list(generator.choice(FILLERS, size=generator.integers(2, 8)))

    found: Texts = []
    for number in range(count):
        label = number % classes
        first = "".join([*stretch(), TELLING[label], *stretch()])
        found.append((first, "".join(stretch()), label))
    return found


def _lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _objects(path: Path, objects: Sequence[Any]) -> None:
    _lines(path, [json.dumps(one, ensure_ascii=False) for one in objects])


def write_entities(path: Path, count: int, seed: int) -> None:
    """Write sentences with two signs that are a person and one that is a place."""
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        for _ in range(2):
            lines += [f"{sign} O" for sign in generator.choice(FILLERS, generator.integers(1, 5))]
            lines += [f"{PERSON[0]} B-PER", f"{PERSON[1]} I-PER"]
        lines += [f"{PLACE[0]} B-LOC", f"{FILLERS[0]} O", ""]
    _lines(path, lines)


def write_spans(path: Path, count: int, seed: int, *, own_layout: bool) -> None:
    """Write questions whose answer is always the same two signs, in one of two layouts."""
    generator = np.random.default_rng(seed)
    tree: list[Any] = []
    for number in range(count):
        before, after = ("".join(generator.choice(FILLERS, generator.integers(2, 9))) for _ in "ab")
        context, identity, question = f"{before}{ANSWER}{after}", f"Q_{number}", f"{SIGNS[50]}？"
        if own_layout:
            qas: Any = [{"query_text": question, "query_id": identity, "answers": [ANSWER]}]
            tree.append({"context_id": f"C_{number}", "context_text": context, "qas": qas})
        else:
            answers = [{"text": ANSWER, "answer_start": len(before)}] * 3
            qas = [{"id": identity, "question": question, "answers": answers}]
            tree.append({"paragraphs": [{"id": f"P_{number}", "context": context, "qas": qas}]})
    whole = tree if own_layout else {"version": "1.0", "data": tree}
    path.write_text(json.dumps(whole, ensure_ascii=False), "utf-8")


def write_texts(name: str, path: Path, split: str, rows: Texts) -> None:
    """Write the table of a classification task as its owners lay it out."""
    labels = TASKS[name].labels
    if name == "chnsenticorp":
        _lines(path, ["label\ttext_a", *(f"{labels[c]}\t{one}" for one, _, c in rows)])
    elif name == "tnews":
        _objects(
            path,
            [{"label": labels[c], "label_desc": "news", "sentence": t, "keywords": ""}
             for t, _, c in rows],
        )  # fmt: skip
    elif name == "xnli" and split == "train":
        names = ["entailment", "neutral", "contradictory"]
        _lines(path, ["premise\thypo\tlabel", *(f"{t}\t{p}\t{names[c]}" for t, p, c in rows)])
    elif name == "xnli":
        header = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tmatch"
        lines = [f"{lang}\t{labels[c]}\t\t{t}\t{p}\tTrue" for t, p, c in rows
                 for lang in ("ar", "zh", "vi")]  # fmt: skip
        _lines(path, [header, *lines])
    elif name == "ocnli":
        facts = {"level": "medium", "label0": "-", "genre": "lit", "prem_id": "lit_1", "id": 0}
        trees = [{**facts, "sentence1": t, "sentence2": p, "label": labels[c]} for t, p, c in rows]
        _objects(path, [*trees, {**trees[0], "label": "-"}])
    elif name == "lcqmc":
        _lines(path, [f"{t}\t{p}\t{labels[c]}" for t, p, c in rows])
    else:  # a comma and a quote, so that it has to be quoted
        lines = [f'"{t},""{p[0]}""",{p},{labels[c]}' for t, p, c in rows]
        _lines(path, ["sentence1,sentence2,label", *lines])


FILES = {
    "cmrc2018": ["cmrc2018_train.json", "cmrc2018_dev.json", None],
    "drcd": ["DRCD_training.json", "DRCD_dev.json", "DRCD_test.json"],
    "chnsenticorp": ["train.tsv", "dev.tsv", "test.tsv"],
    "tnews": ["train.json", "dev.json", None],
    "xnli": ["multinli.train.zh.tsv", "xnli.dev.tsv", "xnli.test.tsv"],
    "ocnli": ["train.50k.json", "dev.json", None],
    "lcqmc": ["train.txt", "dev.txt", "test.txt"],
    "bq": ["train.csv", "dev.csv", "test.csv"],
    "msra": ["train.txt", None, "test.txt"],
    "peopledaily": ["example.train", "example.dev", "example.test"],
}
"""Task to its owners' names of the files to train on, to choose on, to test on."""


@pytest.fixture(scope="session")
def write_task() -> Callable[..., Path]:
    """Write the files of a task: folder that gets one of its name, task, examples of a split."""

    def write(folder: Path, name: str, count: int = 12, train: int | None = None) -> Path:
        place, task = folder / name, TASKS[name]
        place.mkdir(parents=True)
        for seed, (split, file) in enumerate(
            zip(("train", "dev", "test"), FILES[name], strict=True)
        ):
            if file is None:
                continue
            path = place / file
            rows = train if split == "train" and train is not None else count
            if task.kind == "spans":
                write_spans(path, rows, seed, own_layout=file == "cmrc2018_train.json")
            elif task.kind == "entities":
                write_entities(path, rows, seed)
            else:
                write_texts(name, path, split, texts(rows, len(task.labels), seed))
        return place

    return write


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights: an encoder that has 64 positions."""
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.1,
        tag_sets=None,
    )
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocabulary").mkdir()
    (folder / "vocabulary/vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    model_dir.save(LertModel(config), folder / "vocabulary", folder / "encoder")
    return folder / "encoder"
