"""Inputs: real pieces in order, full rows, the same masks for every model."""

from pathlib import Path

import numpy as np
import pytest

from lert_ds import tokenizer_files
from lert_ds.errors import ConfigError
from prune.benchmark.inputs import Text

TEXT = "".join(map(chr, range(0x4E00, 0x4E28)))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> object:
    return tokenizer_files.load(tiny_model)


def test_rows_are_the_text_and_its_masks(tokenizer: object) -> None:
    given = Text(tokenizer, TEXT).inputs(3, 12, 0.3)
    assert {name: array.dtype for name, array in given.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids", "masked_positions"), np.dtype(np.int64)
    )
    ids, places = given["input_ids"], given["masked_positions"]
    assert ids.shape == given["attention_mask"].shape == given["token_type_ids"].shape == (3, 12)
    assert (ids[:, 0] == 2).all()
    assert (ids[:, -1] == 3).all()
    assert given["attention_mask"].all()
    assert not given["token_type_ids"].any()
    assert np.array_equal(np.flatnonzero(ids == 4), places)
    assert np.bincount(places // 12).tolist() == [3, 3, 3]  # 30 % of 10
    whole = 5 + np.arange(36).reshape(3, 12) % 40
    kept = ids > 4
    assert np.array_equal(ids[kept], whole[kept])


def test_a_short_text_starts_again_and_batches_go_on(tokenizer: object) -> None:
    text = Text(tokenizer, TEXT[:7])
    kept = (ids := text.inputs(2, 20, 0.1)["input_ids"]) > 4
    assert np.array_equal(ids[kept], (5 + np.arange(40).reshape(2, 20) % 7)[kept])
    kept = (ids := text.inputs(1, 20, 0.1, first=2)["input_ids"]) > 4
    assert np.array_equal(ids[kept], (5 + (40 + np.arange(20)) % 7)[None][kept])


def test_masks_do_not_depend_on_the_text_and_one_is_always_there(tokenizer: object) -> None:
    one, other = (Text(tokenizer, text).inputs(2, 30, 0.15) for text in (TEXT, TEXT[::-1]))
    assert np.array_equal(one["masked_positions"], other["masked_positions"])
    assert len(Text(tokenizer, TEXT).inputs(4, 3, 0.01)["masked_positions"]) == 4
    every = Text(tokenizer, TEXT).inputs(2, 5, 1.0)["input_ids"]
    assert every.tolist() == [[2, 4, 4, 4, 3]] * 2


def test_a_text_without_a_piece_is_refused(tokenizer: object) -> None:
    with pytest.raises(ConfigError, match="text: there is nothing in it"):
        Text(tokenizer, " \n")


def test_a_model_that_fills_nothing_reads_the_text_as_it_is(tokenizer: object) -> None:
    given = Text(tokenizer, TEXT).inputs(2, 8, None)
    assert set(given) == {"input_ids", "attention_mask", "token_type_ids"}
    assert not (given["input_ids"] == 4).any()
