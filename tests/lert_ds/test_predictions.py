"""Texts in, predictions out, by either runtime."""

import json

import pytest

from lert_ds import predictions
from lert_ds.errors import UserError
from lert_ds.predictions import Candidate, SpecialTokens, by_text, encode, show


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(name, 1 / (2 + place)) for place, name in enumerate(names)]


def test_masks_go_to_their_texts() -> None:
    pieces = [candidates("天", "好"), candidates("##ing"), candidates("见", "再")]
    tags = {"pos": [candidates("n"), candidates("v"), candidates("a")]}
    texts = ["今<m>", "无", "go<m>，<m>"]
    first, none, last = by_text(texts, pieces, tags, "<m>")
    assert (first.filled, none.filled, last.filled) == ("今天", "无", "going，见")
    assert [len(prediction.masks) for prediction in (first, none, last)] == [1, 0, 2]
    assert last.masks[1].pieces == pieces[2]
    assert last.masks[1].tags["pos"].name == "a"


def test_shown_as_a_table_or_as_json() -> None:
    texts = ["[MASK][MASK]"]
    (prediction,) = by_text(texts, [candidates("天", "ab"), candidates("x", "气")], {}, "[MASK]")
    head, *rows = show(prediction, as_json=False).splitlines()
    assert head == "天x"
    assert [row.split()[1] for row in rows] == ["1", "2"]
    columns = [predictions.columns_of(row[: row.index("33.3")]) for row in rows]
    assert columns[0] == columns[1]
    assert json.loads(show(prediction, as_json=True))["masks"][1]["pieces"][1]["name"] == "气"


def test_what_cannot_be_encoded() -> None:
    special = SpecialTokens("<m>", "<s>", "</s>")
    assert encode("今<m>", lambda text: [len(text)], special, 1) == [4]
    with pytest.raises(UserError, match="there is no <m> in it"):
        encode("今[MASK]", lambda _: [1], special, 9)
    with pytest.raises(UserError, match=r"3 tokens with <s> and </s>, the model takes 2"):
        encode("<m>", lambda _: [1, 2, 3], special, 2)
    with pytest.raises(UserError, match="--top-k -1: at least 1"):
        predictions.check_top_k(-1)
