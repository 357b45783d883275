"""Small models of the tiny corpus, configurations that prune one, an edge folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds import cli, model_dir
from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.shards import HELD_OUT
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.seed_run import label_names
from lert_ds.finetune.tasks import TASKS
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from prune.prune_config import PruneRun


@pytest.fixture(scope="session")
def small_model(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of three layers of 16, four heads, 24 neurons, 45 pieces; random weights."""
    torch.manual_seed(3)
    config = LertConfig(
        vocab_size=45, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=32, initializer_range=0.2,
        tag_sets={task: list(LTP_TAGS[task]) for task in ("pos", "dep")},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("small") / "model"
    model_dir.save(LertForPreTraining(config), tiny_corpus, folder)
    return folder


@pytest.fixture
def prune_run(small_model: Path, tiny_corpus: Path, tmp_path: Path) -> Callable[..., PruneRun]:
    """Changes → the configuration of a pruning of the small model by few instances."""

    def make(**changes: Any) -> PruneRun:
        tree = {
            "model": str(small_model),
            "output": str(tmp_path / "pruned"),
            "corpus": str(tiny_corpus),
            "corpus_valid": str(tiny_corpus / HELD_OUT),
            "scoring": {"method": "fisher", "instances": 16, "batch_size": 8},
            "repair": {"instances": 32},
        }
        return parse(PruneRun, tree | changes, "test")

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of two layers and 40 positions, whose outputs are wide apart."""
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=45, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=40,
        tag_sets={task: list(LTP_TAGS[task]) for task in ("pos", "dep")},
    )  # fmt: skip
    model = LertForPreTraining(config).eval()
    with torch.no_grad():  # so that a wrong answer shows
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("tiny") / "run" / "model"
    model_dir.save(model, tiny_corpus, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_edge(tiny_model: Path) -> Path:
    """The edge folder of `tiny_model`, filled at its [MASK]s alone, fp32 and int8."""
    folder = tiny_model.parents[1] / "edge"
    text = folder.with_name("text.txt")
    text.write_text("".join(map(chr, range(0x4E00, 0x4E28))) * 5, "utf-8")
    words = [f"model={tiny_model}", f"output={folder}", f"text={text}", "masked_positions=true"]
    cli.main(["export", "export-edge", *words])
    return folder


@pytest.fixture(scope="session")
def fine_tuned(
    tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Task → a model folder with a head for it, of weights wide apart, and its edge folder."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            task = TASKS[name]
            torch.manual_seed(1)
            config = LertConfig(
                vocab_size=45, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=48, max_position_embeddings=40, initializer_range=0.2,
                tag_sets=None, **label_names(task),
            )  # fmt: skip
            folder = tmp_path_factory.mktemp(name)
            model: Any = KINDS[task.kind].model(config).eval()
            if task.labels:  # so that no class wins everywhere
                with torch.no_grad():
                    logits = model(torch.randint(5, 45, (64, 20))).logits
                    model.classifier.bias -= logits.flatten(0, -2).mean(0)
            model_dir.save(model, tiny_corpus, folder / "model")
            text = folder / "text.txt"
            text.write_text("".join(map(chr, range(0x4E00, 0x4E28))) * 5, "utf-8")
            words = [f"model={folder / 'model'}", f"output={folder / 'edge'}", f"text={text}"]
            cli.main(["export", "export-edge", *words, "masked_positions=false"])
            made[name] = folder / "model", folder / "edge"
        return made[name]

    return make


@pytest.fixture(scope="session")
def dev_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dev files of ocnli, peopledaily and cmrc2018, and none to train on."""
    generator = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("tasks")

    def text(length: int) -> str:
        return "".join(chr(0x4E00 + number) for number in generator.integers(0, 40, length))

    lengths = generator.integers(4, 30, 40).tolist()
    labels = TASKS["ocnli"].labels
    pairs = [{"sentence1": text(n), "sentence2": text(3), "label": labels[n % 3]} for n in lengths]
    tags = TASKS["peopledaily"].labels
    sentences = ["".join(f"{sign} {tags[ord(sign) % 7]}\n" for sign in text(n)) for n in lengths]
    questions = []
    for number, n in enumerate(lengths):
        context = text(2 * n)
        answers = [{"text": context[3:6], "answer_start": 3}]
        qas = [{"id": str(number), "question": text(4), "answers": answers}]
        questions.append({"paragraphs": [{"context": context, "qas": qas}]})
    for name, file, content in (
        ("ocnli", "dev.json", "".join(json.dumps(pair) + "\n" for pair in pairs)),
        ("peopledaily", "dev.txt", "\n".join(sentences)),
        ("cmrc2018", "dev.json", json.dumps({"data": questions})),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(content, "utf-8")
    return folder
