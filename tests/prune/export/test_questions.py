"""Corpora and examples as questions; what of them cannot be one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds import tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import evaluation_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError, ModelError
from lert_ds.labels import LTP_TAGS
from prune.export.export_config import AccuracyConfig
from prune.export.questions import Question, make_questions

CHARACTERS = [chr(0x4E00 + number) for number in range(40)]


def shape(**changes: Any) -> LertConfig:
    tags = {"pos": list(LTP_TAGS["pos"]), "ner": ["O"]}
    return LertConfig(vocab_size=45, tag_sets=tags, id2label={0: "no", 1: "yes"}, **changes)


def ask(folder: Path, head: Any, shape: LertConfig, **keys: Any) -> list[Question]:
    config = AccuracyConfig.model_validate(keys)
    return make_questions(config, head, shape, folder, masked_positions=True)


def test_a_corpus_is_masked_as_in_every_evaluation(tiny_corpus: Path) -> None:
    questions = ask(tiny_corpus, "mlm", shape(), corpus=[tiny_corpus], instances=11)
    assert [len(question.inputs["input_ids"]) for question in questions] == [8, 3]
    whole = list(evaluation_batches(Corpus([tiny_corpus]), MaskingConfig(), 8))[:2]
    for question, batch in zip(questions, whole, strict=True):
        rows = len(question.inputs["input_ids"])
        assert torch.equal(question.inputs["input_ids"], batch.input_ids[:rows])
        own = batch.masked_positions < rows * batch.input_ids.shape[1]
        assert question.answers.keys() == {"mlm/accuracy", "pos/accuracy"}  # ner: other tags
        output, right = question.answers["mlm/accuracy"]
        assert output == "logits"
        np.testing.assert_array_equal(right, batch.labels[own])
        np.testing.assert_array_equal(question.places, batch.masked_positions[own])
        np.testing.assert_array_equal(question.answers["pos/accuracy"][1], batch.tags["pos"][own])


def test_a_corpus_of_another_tokenizer_or_too_long(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="have 32 tokens, the model takes 31"):
        ask(tiny_corpus, "mlm", shape(max_position_embeddings=31), corpus=[tiny_corpus])
    pieces = tokenizer_files.pieces(tokenizer_files.load(tiny_corpus))
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces[:5], *pieces[:4:-1]]) + "\n", "utf-8")
    with pytest.raises(ModelError, match="its tokenizer differs from that of the corpus"):
        ask(tmp_path, "mlm", shape(), corpus=[tiny_corpus])


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    return path


def test_texts_and_pairs(tiny_corpus: Path, tmp_path: Path) -> None:
    one, two, three = CHARACTERS[:3]
    rows = [{"text": one, "label": "yes"}, {"text": one * 9, "pair": two + three, "label": 0}]
    path = write(tmp_path / "examples.jsonl", *rows, {"text": one, "label": "no"})
    (question,) = ask(
        tiny_corpus,
        "sequence_classification",
        shape(max_position_embeddings=8),
        examples=path,
        instances=2,
    )
    ids, types = question.inputs["input_ids"], question.inputs["token_type_ids"]
    assert ids[0].tolist() == [2, 5, 3, 0, 0, 0, 0, 0]
    assert question.inputs["attention_mask"][0].tolist() == [1] * 3 + [0] * 5
    assert ids.shape == (2, 8)
    assert types[1].sum() > 0
    assert question.places is None
    assert question.answers["accuracy"][1].tolist() == [1, 0]


def test_tokens_answer_with_their_first_piece(tiny_corpus: Path, tmp_path: Path) -> None:
    one, two, three = CHARACTERS[:3]
    rows = [
        {"tokens": [one, two + three, one], "labels": ["yes", "no", "yes"]},
        {"tokens": [two], "labels": [1]},
    ]
    path = write(tmp_path / "examples.jsonl", *rows)
    (question,) = ask(tiny_corpus, "token_classification", shape(), examples=path)
    assert question.inputs["input_ids"].tolist() == [[2, 5, 6, 7, 5, 3], [2, 6, 3, 0, 0, 0]]
    assert question.places is not None
    assert question.places.tolist() == [1, 2, 4, 7]
    assert question.answers["accuracy"][1].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("head", "content", "message"),
    [
        ("sequence_classification", "{", "line 1 is wrong: not JSON"),
        ("sequence_classification", "[]", "line 1 is wrong: no JSON object"),
        ("sequence_classification", '{"text": "a"}', "not of the form"),
        ("sequence_classification", '{"text": "a", "pair": 3, "label": 0}', "not of the form"),
        ("sequence_classification", '{"text": "a", "label": "so"}', r"'so' is no label.*no, yes"),
        ("sequence_classification", '{"text": "a", "label": true}', "True is no label"),
        ("token_classification", '{"tokens": ["a"], "labels": []}', "a label for each token"),
        ("token_classification", '{"tokens": [1], "labels": [1]}', "a label for each token"),
        ("token_classification", "\n", "there is nothing to answer in"),
    ],
)
def test_what_is_no_example(
    head: str, content: str, message: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=message):
        ask(tiny_corpus, head, shape(), examples=path)


def test_no_file_and_no_wish(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        ask(tiny_corpus, "token_classification", shape(), examples=tmp_path / "none")
    assert ask(tiny_corpus, "mlm", shape()) == []
