"""Filling [MASK] with PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import fill_mask, predictions
from lert_ds.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。", "##ing", "go"]
TAGS = {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"]}
TEXTS = ["今[MASK]天气很好。", "明天[MASK]", "[MASK]见，[MASK]见", "好"]


@pytest.fixture
def folder(tmp_path: Path, write_filler: Any) -> Path:
    write_filler(tmp_path / "model")
    return tmp_path / "model"


def close(left: predictions.Prediction, right: predictions.Prediction) -> None:
    assert (left.text, left.filled) == (right.text, right.filled)
    for ours, theirs in zip(left.masks, right.masks, strict=True):
        for one, other in zip(
            [*ours.pieces, *ours.tags.values()],
            [*theirs.pieces, *theirs.tags.values()],
            strict=True,
        ):
            assert one.name == other.name
            assert one.probability == pytest.approx(other.probability, abs=1e-6)


def test_a_batch_says_what_each_text_alone_says(folder: Path) -> None:
    model, tokenizer = fill_mask.load(str(folder))
    together = fill_mask.fill(model, tokenizer, TEXTS[:3])
    assert [len(prediction.masks) for prediction in together] == [1, 1, 2]
    for text, prediction in zip(TEXTS[:3], together, strict=True):
        close(prediction, fill_mask.fill(model, tokenizer, [text])[0])


def test_says_what_the_model_computes(folder: Path) -> None:
    model, tokenizer = fill_mask.load(str(folder))
    (prediction,) = fill_mask.fill(model, tokenizer, ["今[MASK]气"], top_k=3)
    logits = model(torch.tensor([[2, 5, 4, 7, 3]]))
    shares = logits.logits[0, 2].softmax(-1)
    best = shares.argsort(descending=True)[:3]
    (mask,) = prediction.masks
    assert [piece.name for piece in mask.pieces] == [PIECES[place] for place in best]
    assert [piece.probability for piece in mask.pieces] == pytest.approx(shares[best].tolist())
    for task, tags in TAGS.items():
        shares = logits.tag_logits[task][0, 2].softmax(-1)
        assert mask.tags[task].name == tags[int(shares.argmax())]
        assert mask.tags[task].probability == pytest.approx(float(shares.max().detach()))


def test_fills_each_place(folder: Path) -> None:
    model, tokenizer = fill_mask.load(str(folder))
    model.cls.predictions.bias.data[PIECES.index("##ing")] = 1e4
    (prediction,) = fill_mask.fill(model, tokenizer, ["go[MASK]，[MASK]"])
    assert prediction.filled == "going，ing"
    assert prediction.masks[1].pieces[0] == predictions.Candidate("##ing", 1.0)


def test_more_candidates_than_pieces(folder: Path) -> None:
    model, tokenizer = fill_mask.load(str(folder))
    (prediction,) = fill_mask.fill(model, tokenizer, ["[MASK]"], top_k=1000)
    pieces = [piece.name for piece in prediction.masks[0].pieces]
    assert sorted(pieces) == sorted(PIECES)


def test_one_bad_text_of_many_is_named(folder: Path) -> None:
    model, tokenizer = fill_mask.load(str(folder))
    with pytest.raises(UserError, match="'好': there is no"):
        fill_mask.fill(model, tokenizer, TEXTS)
