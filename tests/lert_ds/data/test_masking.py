import collections
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.config import parse
from lert_ds.data.draws import Draws
from lert_ds.data.masking import (
    MaskedInstance,
    MaskingConfig,
    VocabularyFacts,
    Words,
    choose_ngrams,
    find_words,
    mask,
)
from lert_ds.data.shards import Instance
from lert_ds.errors import ConfigError

PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = VocabularyFacts(1000, {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK})
PLAIN = MaskingConfig()


def make_instance(stretches: Sequence[Sequence[int]], padding: int = 0) -> Instance:
    """Return [CLS], then each stretch of words of the given sizes with a [SEP] after it, [PAD]s."""
    ids, starts = [CLS], [False]
    for stretch in stretches:
        for size in stretch:
            ids += range(10 + len(ids), 10 + len(ids) + size)
            starts += [True] + [False] * (size - 1)
        ids.append(SEP)
        starts.append(False)
    ids += [PAD] * padding
    starts += [False] * padding
    return Instance(np.array(ids, np.uint16), np.array(starts), {})


def make_text(generator: np.random.Generator, words: int = 330) -> Instance:
    """Return sentences with the word lengths of Chinese news."""
    sizes = generator.choice([1, 2, 3, 4], size=words, p=[0.45, 0.43, 0.08, 0.04]).tolist()
    return make_instance([sizes[first : first + 25] for first in range(0, words, 25)])


@dataclass
class Row:
    instance: Instance

    @property
    def real(self) -> np.ndarray:
        return ~np.isin(self.instance.input_ids, [PAD, CLS, SEP, MASK])

    @property
    def words(self) -> list[range]:
        """The words by a plain loop over tokens, to hold `find_words` to."""
        words: list[list[int]] = []
        for place, real in enumerate(self.real):
            if not real:
                continue
            if self.instance.word_starts[place] or not self.real[place - 1]:
                words.append([])
            words[-1].append(place)
        return [range(word[0], word[-1] + 1) for word in words]


stretches = st.lists(
    st.lists(st.sampled_from([1, 1, 2, 2, 3, 4, 9]), max_size=12), min_size=1, max_size=5
)
configs = st.builds(
    MaskingConfig,
    share=st.sampled_from([0.02, 0.15, 0.5, 1.0]),
    max_predictions=st.one_of(st.none(), st.integers(1, 60)),
    ngram_shares=st.sampled_from([(0.4, 0.3, 0.2, 0.1), (1.0,), (0.0, 0.0, 1.0)]),
    whole_word=st.booleans(),
)


def masked_by(instance: Instance, seed: int, config: MaskingConfig = PLAIN) -> MaskedInstance:
    return mask(instance, Draws(seed, 0, 0), config, VOCABULARY)


def reachable(budget: int, sizes: Sequence[int]) -> int:
    """Return the largest sum of some of `sizes` that is no more than `budget`."""
    sums = {0}
    for size in sizes:
        sums |= {total + size for total in sums if total + size <= budget}
    return max(sums)


def test_the_example_of_the_module() -> None:
    instance = make_instance([[2, 2, 1, 1], [2, 1]], padding=1)
    words = find_words(VOCABULARY.never_masked[instance.input_ids], instance.word_starts)
    assert words.starts.tolist() == [1, 3, 5, 6, 8, 10]
    assert words.sizes.tolist() == [2, 2, 1, 1, 2, 1]
    assert len(masked_by(instance, 1, MaskingConfig(share=0.3, max_predictions=3)).positions) == 3


@given(stretches, st.integers(0, 9), configs, st.integers(0, 2**64 - 1))
def test_every_row_keeps_the_rules(
    sizes: list[list[int]], padding: int, config: MaskingConfig, seed: int
) -> None:
    instance = make_instance(sizes, padding)
    before = instance.input_ids.copy()
    row = Row(instance)
    masked = masked_by(instance, seed, config)
    positions = masked.positions.tolist()

    assert positions == sorted(set(positions))
    assert row.real[positions].all()
    np.testing.assert_array_equal(instance.input_ids, before)
    np.testing.assert_array_equal(masked.labels, before[positions])
    untouched = np.setdiff1d(np.arange(len(before)), positions)
    np.testing.assert_array_equal(masked.input_ids[untouched], before[untouched])

    words = row.words if config.whole_word else [range(p, p + 1) for p in np.flatnonzero(row.real)]
    chosen = [word for word in words if set(word) & set(positions)]
    assert sum(len(word) for word in chosen) == len(positions), "a word was masked in part"
    budget = config.budget(int(row.real.sum()), len(before))
    assert len(positions) == reachable(budget, [len(word) for word in words])


@given(stretches, st.integers(1, 80), configs, st.integers(0, 2**64 - 1))
def test_the_words_of_an_ngram_are_adjacent_and_belong_to_no_other(
    sizes: list[list[int]], budget: int, config: MaskingConfig, seed: int
) -> None:
    row = Row(make_instance(sizes))
    words = row.words
    found = find_words(~row.real, row.instance.word_starts)
    assert [range(start, start + size) for start, size in zip(*found, strict=True)] == words
    generator = Draws(seed, 0, 0)
    ngrams = choose_ngrams(found, budget, generator, config.ngram_shares)
    for first, count in ngrams:
        assert 1 <= count <= len(config.ngram_shares)
        assert words[first + count - 1].stop - words[first].start == sum(
            len(word) for word in words[first : first + count]
        )
    chosen = [first + step for first, count in ngrams for step in range(count)]
    assert len(chosen) == len(set(chosen))


def test_a_row_of_lert_s_length_has_75_predictions() -> None:
    generator = np.random.default_rng(0)
    for seed in range(200):
        instance = make_text(generator)
        real = Row(instance).real.sum()
        count = len(masked_by(instance, seed, MaskingConfig(max_predictions=10_000)).positions)
        assert count == round(0.15 * real)
        ids, starts = instance.input_ids[:512], instance.word_starts[:512]
        assert len(masked_by(Instance(ids, starts, {}), seed).positions) in (73, 74, 75)


@pytest.mark.parametrize(
    ("tokens", "length", "budget"),
    [(510, 512, 75), (126, 128, 18), (20, 512, 3), (1, 512, 1), (0, 512, 0), (6, 6, 1), (4, 4, 1)],
)
def test_the_default_budget(tokens: int, length: int, budget: int) -> None:
    assert PLAIN.budget(tokens, length) == budget


def test_what_no_words_add_up_to_is_the_nearest_below() -> None:
    pairs = make_instance([[2] * 10, [2] * 10])
    assert len(masked_by(pairs, 0, MaskingConfig(max_predictions=5)).positions) == 4
    assert len(masked_by(make_instance([[9, 9]]), 0).positions) == 0


def test_an_ngram_gives_way_where_only_other_words_fill_the_budget() -> None:
    # 7 = 2 + 2 + 3: whoever takes three pairs first has to take one back for the word of three.
    instance = make_instance([[2, 2, 2, 2, 3, 2, 2]])
    config = MaskingConfig(max_predictions=7, share=1.0)
    assert {len(masked_by(instance, seed, config).positions) for seed in range(100)} == {7}


@pytest.mark.parametrize("sizes", [[], [[]], [[], []]])
def test_a_row_without_text_has_no_positions(sizes: list[list[int]]) -> None:
    masked = masked_by(make_instance(sizes, padding=4), 0)
    assert masked.positions.shape == masked.labels.shape == (0,)
    assert masked.positions.dtype == np.int64


def test_a_piece_after_a_special_token_opens_a_word_of_its_own() -> None:
    ids = np.array([CLS, 50, 51, 52, SEP, 53, 54, SEP], np.uint16)
    starts = np.array([0, 0, 0, 1, 0, 0, 1, 0], np.bool_)
    words = find_words(VOCABULARY.never_masked[ids], starts)
    assert words == (pytest.approx([1, 3, 5, 6]), pytest.approx([2, 1, 1, 1]))


def test_unk_is_masked_with_its_word_and_never_put_in() -> None:
    assert not VOCABULARY.never_masked[UNK]
    assert VOCABULARY.replacements.tolist() == list(range(5, 1000))


def test_ngrams_have_macbert_s_shares() -> None:
    generator = np.random.default_rng(3)
    counts: collections.Counter[int] = collections.Counter()
    for index in range(60):
        instance = make_text(generator, words=3000)
        words = find_words(~Row(instance).real, instance.word_starts)
        ngrams = choose_ngrams(words, 700, Draws(0, 0, index), PLAIN.ngram_shares)
        counts.update(count for _, count in ngrams)
    total = sum(counts.values())
    shares = [counts[count] / total for count in (1, 2, 3, 4)]
    np.testing.assert_allclose(shares, PLAIN.ngram_shares, atol=0.015)


def test_every_word_length_and_place_is_masked_as_often() -> None:
    instance = make_instance([[1, 2, 3, 4] * 20] * 2)
    hits = np.zeros(len(instance.input_ids))
    rounds = 3000
    for index in range(rounds):
        generator = Draws(5, 0, index)
        hits[mask(instance, generator, PLAIN, VOCABULARY).positions] += 1
    words = find_words(~Row(instance).real, instance.word_starts)
    rate = hits[Row(instance).real].sum() / rounds / Row(instance).real.sum()
    for size in (1, 2, 3, 4):
        starts = words.starts[words.sizes == size]
        # Short words fill what n-grams leave of the budget: in Wikipedia words of 1 token are
        # masked 4 % more often than words of 4; here, with many long words, 13 %.
        assert hits[starts].mean() / rounds == pytest.approx(rate, rel=0.12)
    inner = hits[20:180] / rounds  # a stretch's borders have fewer n-grams over them
    assert inner.min() > 0.6 * rate
    assert inner.max() < 1.4 * rate


def test_80_10_10() -> None:
    generator = np.random.default_rng(1)
    masks = kept = total = 0
    replaced: list[np.ndarray] = []
    for index in range(1500):
        instance = make_text(generator)
        masked = mask(instance, Draws(2, 0, index), PLAIN, VOCABULARY)
        ids = masked.input_ids[masked.positions]
        masks += int((ids == MASK).sum())
        kept += int((ids == masked.labels).sum())
        replaced.append(ids[(ids != MASK) & (ids != masked.labels)])
        total += len(ids)
    assert masks / total == pytest.approx(0.8, abs=0.01)
    assert kept / total == pytest.approx(0.1, abs=0.01)
    random_ids = np.concatenate(replaced)
    assert random_ids.min() == 5
    assert random_ids.max() == 999
    counts = np.bincount(random_ids, minlength=1000)[5:]
    assert counts.std() < 1.3 * np.sqrt(counts.mean()), "random ids are not drawn evenly"


def test_80_10_10_is_drawn_for_each_token_of_a_word() -> None:
    instance = make_instance([[4] * 40])
    kinds = set()
    for seed in range(30):
        masked = masked_by(instance, seed)
        is_mask = masked.input_ids[masked.positions] == MASK
        kinds |= {tuple(word) for word in is_mask.reshape(-1, 4).tolist()}
    assert len(kinds) > 4


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_the_shares_at_their_ends(mask_share: float, random_share: float) -> None:
    config = MaskingConfig(mask_share=mask_share, random_share=random_share)
    instance = make_text(np.random.default_rng(0))
    masked = masked_by(instance, 0, config)
    ids = masked.input_ids[masked.positions]
    assert (ids == MASK).all() == (mask_share == 1)
    assert (ids == masked.labels).all() == (mask_share == random_share == 0)


def test_the_generator_alone_decides() -> None:
    instance = make_text(np.random.default_rng(0))

    def masked(seed: int, epoch: int, index: int) -> bytes:
        result = mask(instance, Draws(seed, epoch, index), PLAIN, VOCABULARY)
        return b"".join(array.tobytes() for array in result)

    assert masked(7, 2, 9) == masked(7, 2, 9)
    keys = [(7, 2, 9), (8, 2, 9), (7, 3, 9), (7, 2, 10), (7, 9, 2), (2**64 - 1, 2, 9)]
    assert len({masked(*key) for key in keys}) == len(keys)


def test_golden_mask() -> None:
    # A change here changes every run that is resumed: raise the checkpoint's version with it.
    instance = make_instance([[2, 1, 1, 3, 1, 2], [1, 1, 2, 4, 1]])
    masked = masked_by(instance, 20221110, MaskingConfig(share=0.5, max_predictions=10))
    assert masked.positions.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 12, 13]
    assert masked.input_ids[masked.positions].tolist() == [4, 884, 4, 4, 4, 4, 4, 4, 4, 467]


def test_words_is_walked_without_words() -> None:
    nothing = np.zeros(0, np.int64)
    assert choose_ngrams(Words(nothing, nothing), 5, Draws(0, 0, 0), (1.0,)) == []


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"ngram_shares": [0.5, 0.4]}, r"ngram_shares = \[0.5, 0.4\].*sum of 1"),
        ({"ngram_shares": []}, "ngram_shares"),
        ({"ngram_shares": [1.5, -0.5]}, "none below 0"),
        ({"mask_share": 0.8, "random_share": 0.3}, "mask_share = 0.8 and random_share = 0.3"),
        ({"share": 0}, "share = 0"),
        ({"share": 1.5}, "share = 1.5"),
        ({"max_predictions": 0}, "max_predictions = 0"),
        ({"whole_words": True}, "unknown key whole_words .did you mean whole_word"),
    ],
)
def test_a_wrong_configuration_names_its_key(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(MaskingConfig, tree, "masking")


def test_a_configuration_file_may_change_every_key() -> None:
    tree = {"share": 0.2, "max_predictions": 20, "ngram_shares": [1], "whole_word": False}
    assert parse(MaskingConfig, tree, "masking").ngram_shares == (1.0,)
