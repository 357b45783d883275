"""`masking.cpp` chooses what `masking.py` chooses, bit for bit."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds import op_builds
from lert_ds.data import masking, native_masking
from lert_ds.data.masking import MaskingConfig, VocabularyFacts
from lert_ds.data.sampler import Samples
from lert_ds.data.shards import Rows

PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = VocabularyFacts(1000, {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK})
seeds = st.integers(0, 2**64 - 1)
counters = st.integers(0, 2**63 - 1)
configs = st.builds(
    MaskingConfig,
    share=st.sampled_from([0.02, 0.15, 0.5, 1.0]),
    max_predictions=st.one_of(st.none(), st.integers(1, 300)),
    ngram_shares=st.sampled_from([(0.4, 0.3, 0.2, 0.1), (1.0,), (0.0, 0.0, 1.0)]),
    mask_share=st.sampled_from([0.8, 0.0]),
    random_share=st.sampled_from([0.1, 0.2, 0.0]),
    whole_word=st.booleans(),
)


def make_rows(rows: int, length: int, seed: int, opens: float, special: float) -> Rows:
    """Return rows of random ids: a share of special ones, a share of words' first tokens."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 1000, (rows, length)).astype(np.uint16)
    ids[generator.random(ids.shape) < special] = SEP
    ids[:, :1] = CLS
    for row in range(rows):
        ids[row, int(generator.integers(0, length + 1)) :] = PAD
    return Rows(ids, generator.random(ids.shape) < opens, {})


def both(rows: Rows, samples: Samples, seed: int, config: MaskingConfig) -> None:
    if native_masking.load() is None:
        pytest.skip("no C++ compiler")
    ours = native_masking.mask_rows(rows, samples, seed, config, VOCABULARY)
    plain = masking.mask_rows(rows, samples, seed, config, VOCABULARY)
    np.testing.assert_array_equal(ours.positions, plain.positions)
    np.testing.assert_array_equal(ours.input_ids, plain.input_ids)
    assert [array.dtype for array in ours] == [array.dtype for array in plain] == [np.int64] * 2


@given(
    st.integers(1, 3), st.sampled_from([1, 2]), st.integers(1, 90), seeds, counters, counters,
    st.sampled_from([0.0, 0.1, 0.6, 1.0]), st.sampled_from([0.0, 0.05, 0.5, 1.0]), configs,
)  # fmt: skip
def test_it_draws_what_python_draws(
    count: int,
    of_each: int,
    length: int,
    seed: int,
    epoch: int,
    index: int,
    opens: float,
    special: float,
    config: MaskingConfig,
) -> None:
    rows = make_rows(count * of_each, length, seed % 2**32, opens, special)
    indices = np.array([max(index - number, 0) for number in range(count)])
    both(rows, Samples(np.full(count, epoch), indices), seed, config)


@pytest.mark.parametrize("sizes", [[2], [3, 2], [7, 5], [70, 3], [64, 63, 65], [9, 9, 1]])
def test_where_words_do_not_add_up_to_the_budget(sizes: Sequence[int]) -> None:
    # The rare ways: n-grams are taken back, sums of more than 64 tokens.
    length = 512
    starts = np.zeros((40, length), np.bool_)
    generator = np.random.default_rng(len(sizes))
    for row in starts:
        place = 1
        while place < length:
            row[place] = True
            place += int(generator.choice(sizes))
    ids = generator.integers(5, 1000, starts.shape).astype(np.uint16)
    ids[:, 0], ids[:, -1] = CLS, SEP
    samples = Samples(np.zeros(40, np.int64), np.arange(40))
    for limit in (1, 5, 63, 64, 75, 127, 200, 511):
        both(Rows(ids, starts, {}), samples, 3, MaskingConfig(max_predictions=limit, share=1.0))


def test_no_row() -> None:
    nothing = np.zeros(0, np.int64)
    both(Rows.empty(0, 8, ()), Samples(nothing, nothing), 0, MaskingConfig())


def test_an_id_beyond_the_vocabulary_reads_no_other_memory() -> None:
    rows = make_rows(2, 40, 1, 0.6, 0.1)
    rows.input_ids[0, 3:] = 65_535
    samples = Samples(*np.zeros((2, 2), np.int64))
    found = native_masking.mask_rows(rows, samples, 0, MaskingConfig(), VOCABULARY)
    assert len(found.positions)


def test_without_a_compiler_python_masks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr(op_builds.cpp_extension, "load", refuse)
    monkeypatch.setattr(op_builds, "wait_for_builds", lambda: None)  # others' builds
    monkeypatch.setattr(native_masking, "load", functools.cache(native_masking.load.__wrapped__))
    rows, samples = make_rows(3, 40, 1, 0.6, 0.1), Samples(*np.zeros((2, 3), np.int64))
    with caplog.at_level(logging.WARNING):
        found = native_masking.mask_rows(rows, samples, 5, MaskingConfig(), VOCABULARY)
        native_masking.mask_rows(rows, samples, 5, MaskingConfig(), VOCABULARY)
    (record,) = caplog.records
    assert "masking.cpp could not be built, so masks are drawn more slowly" in record.message
    plain = masking.mask_rows(rows, samples, 5, MaskingConfig(), VOCABULARY)
    np.testing.assert_array_equal(found.input_ids, plain.input_ids)
