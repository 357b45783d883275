"""A packed instance to a masked one: whole words, n-grams of words, an exact budget.

    tokens        [CLS]  今   天   天   气  很   好  [SEP]  我   们   去  [SEP] [PAD]
    word_starts     0    1    0   1    0   1    1    0    1    0   1    0     0
    words                 0         1       2    3          4       5

    share = 0.3 of the 9 tokens that are not special, at most max_predictions = 3: the budget is 3.
    A 2-gram is drawn, starting at word 1: 天气 很. Its 3 tokens fill the budget.
    (Starting at word 3 it would not fit: [SEP] parts 好 from 我们, so another start is tried.)

    positions     [3, 4, 5]            labels    [天, 气, 很]
    input_ids     [CLS] 今 天 [MASK] [MASK] 很 好 [SEP] 我 们 去 [SEP] [PAD]      (很 was kept)

The lengths of the n-grams are MacBERT's: 1 to 4 words with 40/30/20/10 % (Cui et al. 2020,
arXiv 2004.13922), and where the start does not fit another start is drawn, not another length, so
that the shares hold. The last n-gram is shortened to what the budget leaves and what then remains
is filled with words of that size, so every row has the same count of predictions: LERT's 75 of
512. 80/10/10 is drawn for each token, not for each word, as `create_masked_lm_predictions` of
github.com/google-research/bert does with whole words too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from lert_ds.config import Config
from lert_ds.data.draws import Draws
from lert_ds.data.sampler import Samples
from lert_ds.data.shards import Instance, Manifest, Rows

LERT_PREDICTIONS, LERT_LENGTH = 75, 512

NEVER_MASKED = ("pad", "cls", "sep", "mask")
"""Special tokens that stand for no text. [UNK] does: it is part of its word, masked, predicted."""

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


class MaskingConfig(Config):
    """Which tokens are to be predicted, and what stands in their place."""

    share: float = Field(0.15, gt=0, le=1)
    """Share of an instance's tokens, special ones aside, that is predicted."""
    max_predictions: int | None = Field(None, ge=1)
    """Most predictions an instance; by default LERT's 75 of 512 tokens, in proportion, rounded
    down: 18 of 128."""
    ngram_shares: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    """Shares of the n-grams of 1, 2, … words among those masked; [1.0] masks single words."""
    mask_share: float = Field(0.8, ge=0, le=1)
    """Share of the predicted tokens that [MASK] replaces."""
    random_share: float = Field(0.1, ge=0, le=1)
    """Share of the predicted tokens that a random token replaces; the rest is left as it is."""
    whole_word: bool = True
    """Whether words are masked as a whole; otherwise each token counts as a word."""

    @model_validator(mode="after")
    def _check(self) -> "MaskingConfig":
        shares = self.ngram_shares
        if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"ngram_shares = {list(shares)}: name the shares of 1-, 2-, … grams, "
                "none below 0, with a sum of 1"
            )
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"mask_share = {self.mask_share} and random_share = {self.random_share}: "
                "they add up to more than 1; lower one of them"
            )
        return self

    def limit(self, length: int) -> int:
        """Return the most places to predict in an instance of `length` places."""
        if self.max_predictions is not None:
            return self.max_predictions
        return max(1, LERT_PREDICTIONS * length // LERT_LENGTH)

    def budget(self, tokens: int, length: int) -> int:
        """Return how many of `tokens` tokens to predict in an instance of `length` places."""
        return min(self.limit(length), max(1, round(self.share * tokens))) if tokens else 0


@dataclass(frozen=True)
class VocabularyFacts:
    """What masking has to know of a vocabulary."""

    size: int
    """Number of ids."""
    special_ids: dict[str, int]
    """`pad`, `unk`, `cls`, `sep`, `mask` to their ids."""

    @classmethod
    def of(cls, manifest: Manifest) -> "VocabularyFacts":
        """Return the facts that a corpus states."""
        return cls(manifest.vocabulary_size, manifest.special_ids)

    @property
    def mask_id(self) -> int:
        """Id of [MASK]."""
        return self.special_ids["mask"]

    @property
    def pad_id(self) -> int:
        """Id of [PAD]."""
        return self.special_ids["pad"]

    @cached_property
    def never_masked(self) -> Bools:
        """Whether an id is a special token that stands for no text; bool [size]."""
        never = np.zeros(self.size, dtype=np.bool_)
        never[[self.special_ids[name] for name in NEVER_MASKED]] = True
        return never

    @cached_property
    def replacements(self) -> Integers:
        """The ids that random replacement draws from, no special one, [UNK] neither; int64."""
        return np.setdiff1d(np.arange(self.size), list(self.special_ids.values()))


class Words(NamedTuple):
    """The words of an instance, in order; every array is [words]."""

    starts: Integers
    """Place of the first token."""
    sizes: Integers
    """Number of tokens."""


class MaskedInstance(NamedTuple):
    """An instance ready to be predicted."""

    input_ids: npt.NDArray[np.uint16]
    """uint16 [length]: token ids after replacement."""
    positions: Integers
    """int64 [masked], ascending: places to predict."""
    labels: npt.NDArray[np.uint16]
    """uint16 [masked]: the tokens that stood there."""


class MaskedRows(NamedTuple):
    """Rows ready to be predicted."""

    input_ids: Integers
    """int64 [rows, length]: token ids after replacement."""
    positions: Integers
    """int64 [masked], ascending: places to predict in the flattened rows."""


def mask_rows(
    rows: Rows,
    samples: Samples,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyFacts,
) -> MaskedRows:
    """Return rows masked one after the other; those of one sample share its draws.

    `native_masking.mask_rows` does the same, faster.
    """
    count, length = rows.input_ids.shape
    of_each = count // max(len(samples.indices), 1)
    input_ids = rows.input_ids.astype(np.int64)
    positions = [np.zeros(0, dtype=np.int64)]
    keys = zip(samples.epochs.tolist(), samples.indices.tolist(), strict=True)
    for number, (epoch, index) in enumerate(keys):
        draws = Draws(seed, epoch, index)
        for row in range(number * of_each, (number + 1) * of_each):
            masked = mask(rows.row(row), draws, config, vocabulary)
            input_ids[row] = masked.input_ids
            positions.append(masked.positions + row * length)
    return MaskedRows(input_ids, np.concatenate(positions))


def mask(
    instance: Instance,
    draws: Draws,
    config: MaskingConfig,
    vocabulary: VocabularyFacts,
) -> MaskedInstance:
    """Return `instance` with its budget of tokens chosen and replaced; a pure function.

    As many tokens as the budget says are chosen; fewer only where no set of whole words adds up to
    it, and then as many as one can.
    """
    fixed = vocabulary.never_masked.take(instance.input_ids)
    words = find_words(fixed, instance.word_starts if config.whole_word else None)
    budget = config.budget(int(words.sizes.sum()), len(fixed))
    chosen = np.zeros(len(words.starts), dtype=np.bool_)
    for first, count in choose_ngrams(words, budget, draws, config.ngram_shares):
        chosen[first : first + count] = True
    starts, sizes = words.starts[chosen], words.sizes[chosen]
    ends = sizes.cumsum()
    # The k-th masked token of a word lies k places after the word's first.
    positions = np.arange(ends[-1] if len(ends) else 0) + (starts - ends + sizes).repeat(sizes)
    labels = instance.input_ids[positions]
    shares = draws.shares(len(positions))
    others = draws.below(len(vocabulary.replacements), len(positions))
    ids = np.where(shares < config.mask_share, vocabulary.mask_id, vocabulary.replacements[others])
    kept = shares >= config.mask_share + config.random_share
    ids[kept] = labels[kept]
    input_ids = instance.input_ids.copy()
    input_ids[positions] = ids
    return MaskedInstance(input_ids, positions, labels)


def find_words(fixed: Bools, word_starts: Bools | None) -> Words:
    """Return the words of a row: runs of tokens from one that opens a word to the next.

    A token after a special one opens a word even where it is not marked, since the border of an
    instance may cut a word.

    Args:
        fixed: bool [length], special tokens: they end a word and belong to none.
        word_starts: bool [length], tokens that open a word; None where every token does.
    """
    edges = fixed | word_starts if word_starts is not None else np.ones_like(fixed)
    edges[:1] = True
    edges[1:] |= fixed[:-1]
    starts = edges.nonzero()[0]
    stops = np.empty_like(starts)
    stops[:-1] = starts[1:]
    stops[-1:] = len(fixed)
    is_word = ~fixed[starts]
    return Words(starts[is_word], (stops - starts)[is_word])


def choose_ngrams(
    words: Words, budget: int, draws: Draws, shares: Sequence[float]
) -> list[tuple[int, int]]:
    """Return n-grams as (first word, number of words), in the order of their choice.

    They share no word, hold no special token, and have `budget` tokens together, or, where whole
    words cannot add up to that, as many as they can below.
    """
    if not len(words.starts) or not budget:
        return []
    before = words.sizes.cumsum() - words.sizes
    # Equal for words that follow each other with no special token between; then no word at all.
    stretches = (words.starts - before).tolist() + [-1] * len(shares)
    # Every n-gram has a token or more, so a budget of draws is enough.
    counts = 1 + borders_of(shares).searchsorted(draws.shares(budget), side="right")
    order = draws.order(len(before)).tolist()
    sizes = words.sizes.tolist()
    taken = bytearray(len(sizes))
    ngrams, gap = _place(counts.tolist(), order, sizes, stretches, taken, budget)
    if gap:
        _fill(gap, order, sizes, taken, ngrams)
    return ngrams


def borders_of(shares: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return where the lengths of n-grams part [0, 1); float64 [lengths - 1]."""
    return np.cumsum(np.array(shares, dtype=np.float64))[:-1]


def _place(
    counts: list[int],
    order: list[int],
    sizes: list[int],
    stretches: list[int],
    taken: bytearray,
    gap: int,
) -> tuple[list[tuple[int, int]], int]:
    """Return n-grams of the drawn lengths, while they fit, and the tokens that `gap` has left.

    Starts come from `order`, round and round. A length that fits at none of them is not tried
    again: the longest that does takes its place.
    """
    ngrams: list[tuple[int, int]] = []
    longest, place = len(stretches), 0
    for wanted in counts:
        count = wanted if wanted < longest else longest
        misses = 0
        first = order[place]
        while stretches[first] != stretches[first + count - 1] or 1 in taken[first : first + count]:
            place = (place + 1) % len(order)
            first = order[place]
            misses += 1
            if misses == len(order):
                longest = count = count - 1
                misses = 0
                if not count:
                    return ngrams, gap
        size = sum(sizes[first : first + count])
        while size > gap:
            count -= 1
            size -= sizes[first + count]
        if not count:
            return ngrams, gap
        taken[first : first + count] = b"\1" * count
        ngrams.append((first, count))
        gap -= size
        if not gap:
            break
    return ngrams, gap


def _fill(
    gap: int, order: list[int], sizes: list[int], taken: bytearray, ngrams: list[tuple[int, int]]
) -> None:
    """Add single words of `gap` tokens together to `ngrams`, taking back n-grams where it must."""
    filled, words = _subset(gap, [word for word in order if not taken[word]], sizes)
    if filled < gap:
        # Rare: of 8,000 rows of Wikipedia none came here. Only long words are left over.
        budget = gap + sum(size for size, used in zip(sizes, taken, strict=True) if used)
        missing = budget - _subset(budget, order, sizes)[0]
        while gap - filled > missing:
            first, count = ngrams.pop()
            taken[first : first + count] = bytes(count)
            gap += sum(sizes[first : first + count])
            filled, words = _subset(gap, [word for word in order if not taken[word]], sizes)
    ngrams.extend((word, 1) for word in words)


def _subset(target: int, order: list[int], sizes: list[int]) -> tuple[int, list[int]]:
    """Return the largest sum of sizes up to `target`, and words of `order` that have it.

    Bit s of `sums` says that some of the words so far add up to s.
    """
    sums, within = 1, (1 << (target + 1)) - 1
    steps: list[tuple[int, int]] = []
    for word in order:
        more = (sums | sums << sizes[word]) & within
        if more != sums:
            steps.append((word, sums))
            sums = more
            if sums >> target:
                break
    best = rest = sums.bit_length() - 1
    words = []
    for word, sums_before in reversed(steps):
        if not sums_before >> rest & 1:
            words.append(word)
            rest -= sizes[word]
    return best, words
