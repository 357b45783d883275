"""Tag the words of sentences: a copy of the sentence for each word, in which that word is masked.

    words   今天 天气 很 好
    copies  [MASK][MASK]天气很好    今天[MASK][MASK]很好    今天天气[MASK]好    今天天气很[MASK]
    tags    nt nt → nt           n n → n              d                  a

It is what the model was trained on: a whole word is masked, and the tag of the word is the label of
each of its pieces. So the probability of a tag is its mean over the word's pieces. As in training
the sentence is cut into pieces as a whole; a piece that reaches into two words counts for both.

A sentence that is longer than the model's positions is shown to it in part: for each word as many
pieces as there are positions, the word in the middle, at the ends of the sentence to one side. Of a
word that is longer than that, each such part is asked about in a window of its own. Nothing is left
out, and a text that fits is always seen whole.

The copies of many sentences are sorted by length and go through the model in batches of about
equally many tokens. Who runs it is no matter here: PyTorch (`tag_words.py`) or ONNX Runtime
(`edge/edge_model.py`), and then this module needs numpy alone.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lert_ds.corpus.text import locate_words
from lert_ds.errors import UserError
from lert_ds.labels import TagSets
from lert_ds.predictions import Candidate, SpecialTokens, check_top_k, shortened
from lert_ds.tagged import TaggedSentence, TaggedWord

TOKENS_PER_BATCH = 8192
"""[CLS], [SEP] and padding included."""
_SCORED_SHARE = 4
"""At most one in so many tokens of a batch is scored: the MLM head gives a number for each of
21,128 pieces, so 2,048 masked pieces fill 165 MB."""


class Words(NamedTuple):
    """A sentence and its words, which stand in it with only white space between them."""

    text: str
    words: Sequence[str]


class Encoded(NamedTuple):
    """The pieces of a text, without special tokens."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]
    """Where each piece stands in the text: its first character, and that after its last."""


class SpecialIds(NamedTuple):
    """Ids of the special tokens that a copy is made with."""

    mask: int
    cls: int
    sep: int


class MaskedCopies(NamedTuple):
    """A batch of sentences, in each of which one word is masked."""

    ids: list[list[int]]
    """Of each copy, [CLS] and [SEP] among them."""
    places: NDArray[np.int64]
    """[scored]: where the masked pieces lie in the flattened [copies, longest copy]."""
    truth: NDArray[np.int64]
    """[scored]: the pieces that stand there."""


class Scores(NamedTuple):
    """What the model says of the scored places of a batch."""

    pieces: NDArray[Any]
    """[scored]: how probable the piece is that stands there."""
    tags: Mapping[str, NDArray[Any]]
    """Task to [scored, classes], the probability of each tag."""


class _Copy(NamedTuple):
    """A copy of a sentence, by numbers: pieces from `start` to before `end` are seen."""

    sentence: int
    word: int
    start: int
    end: int
    masked: tuple[int, int]
    """Pieces of the word, first and after the last; only what is seen of them."""
    scored: tuple[int, int]
    """Those that this copy answers for: all that are masked, but in a word too long to be seen."""

    @property
    def tokens(self) -> int:
        return self.end - self.start + 2


@dataclass
class _Found:
    """What is known of one word so far."""

    pieces: list[tuple[int, float]] = field(default_factory=list)
    """Place in the sentence, ascending, and probability. Sorting by length keeps the order of the
    parts of a word that is longer than the model: they are equally long."""
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Task to the sum over the pieces, [classes]."""


@dataclass(frozen=True)
class Tagger:
    """A model that can be asked about masked pieces, whatever runs it."""

    encode: Callable[[str], Encoded]
    score: Callable[[MaskedCopies], Scores]
    name_of: Callable[[int], str]
    """Id to piece."""
    special: SpecialTokens
    special_ids: SpecialIds
    positions: int
    """Most tokens of a copy."""
    tag_sets: TagSets
    """Of the tasks that `score` gives."""
    tokens_per_batch: int = TOKENS_PER_BATCH

    def tag(self, sentences: Sequence[Words], top_k: int = 1) -> list[TaggedSentence]:
        """Return the sentences with `top_k` tags a word and task, the most probable first.

        What is said of a sentence does not depend on the others, but for the rounding of floating
        point numbers (1e-6), and in int8 graphs, whose activations are quantized over a batch.

        Raises:
            UserError: a [MASK] stands in a sentence, its words are not those of its text, or
                `top_k` is below 1.
        """
        check_top_k(top_k)
        encoded: list[Encoded] = []
        copies: list[_Copy] = []
        for number, sentence in enumerate(sentences):
            self._refuse_masks(sentence.text)
            pieces = self.encode(sentence.text)
            encoded.append(pieces)
            room = self.positions - 2
            copies += _copies(number, len(pieces.ids), _pieces_of_words(sentence, pieces), room)
        found = [[_Found() for _ in sentence.words] for sentence in sentences]
        for batch in _batches(copies, self.tokens_per_batch):
            scores = self.score(self._masked(batch, encoded))
            _collect(batch, scores, found)
        return [
            TaggedSentence(
                sentence.text,
                [
                    self._tagged(word, known, pieces, top_k)
                    for word, known in zip(sentence.words, of_words, strict=True)
                ],
            )
            for sentence, pieces, of_words in zip(sentences, encoded, found, strict=True)
        ]

    def _refuse_masks(self, text: str) -> None:
        if self.special.mask in text:
            raise UserError(
                f"{shortened(text)!r}: there is a {self.special.mask} in it, which is no word to "
                "tag; leave --tag out to have it filled in"
            )

    def _masked(self, batch: Sequence[_Copy], encoded: Sequence[Encoded]) -> MaskedCopies:
        longest = max(copy.tokens for copy in batch)
        ids: list[list[int]] = []
        places: list[int] = []
        truth: list[int] = []
        for row, copy in enumerate(batch):
            whole = encoded[copy.sentence].ids
            seen = list(whole[copy.start : copy.end])
            first, after = copy.masked[0] - copy.start, copy.masked[1] - copy.start
            seen[first:after] = [self.special_ids.mask] * (after - first)
            ids.append([self.special_ids.cls, *seen, self.special_ids.sep])
            offset = row * longest + 1 - copy.start  # 1: [CLS]
            places += [offset + piece for piece in range(*copy.scored)]
            truth += whole[slice(*copy.scored)]
        return MaskedCopies(ids, np.array(places, np.int64), np.array(truth, np.int64))

    def _tagged(self, word: str, known: _Found, pieces: Encoded, top_k: int) -> TaggedWord:
        own = [
            Candidate(self.name_of(pieces.ids[place]), probability)
            for place, probability in known.pieces
        ]
        tags = {
            task: _best(sums / len(known.pieces), self.tag_sets[task], top_k)
            for task, sums in known.sums.items()
        }
        return TaggedWord(word, own, tags)


def _pieces_of_words(sentence: Words, pieces: Encoded) -> Iterator[tuple[int, int]]:
    """Yield the pieces that reach into each word: the first, and that after the last."""
    spans = locate_words(sentence.text, sentence.words)
    if spans is None:
        raise UserError(
            f"{shortened(sentence.text)!r}: its words are not those of the text, or not in order"
        )
    starts, ends = [start for start, _ in pieces.spans], [end for _, end in pieces.spans]
    for start, end in spans:
        yield bisect_right(ends, start), bisect_left(starts, end)


def _copies(
    sentence: int, pieces: int, words: Iterator[tuple[int, int]], room: int
) -> Iterator[_Copy]:
    """Yield the copies of a sentence of so many pieces, of which `room` are seen at once."""
    for number, (first, after) in enumerate(words):
        for start in range(first, after, room):
            scored = start, min(start + room, after)
            spare = room - (scored[1] - scored[0])
            left = max(0, min(scored[0] - spare // 2, pieces - room))
            right = min(pieces, left + room)
            yield _Copy(
                sentence, number, left, right, (max(first, left), min(after, right)), scored
            )


def _batches(copies: Sequence[_Copy], tokens_per_batch: int) -> Iterator[list[_Copy]]:
    """Yield the copies in batches, those of a length together, none larger than said.

    A copy that is larger by itself is a batch of one.
    """
    batch: list[_Copy] = []
    scored = 0
    for copy in sorted(copies, key=lambda copy: copy.tokens):  # so the last is the longest
        more = copy.scored[1] - copy.scored[0]
        too_many = scored + more > tokens_per_batch // _SCORED_SHARE
        if batch and (too_many or (len(batch) + 1) * copy.tokens > tokens_per_batch):
            yield batch
            batch, scored = [], 0
        batch.append(copy)
        scored += more
    if batch:
        yield batch


def _collect(batch: Sequence[_Copy], scores: Scores, found: Sequence[Sequence[_Found]]) -> None:
    """Add what is said of the scored pieces of a batch to the words that they are of."""
    row = 0
    for copy in batch:
        known = found[copy.sentence][copy.word]
        rows = slice(row, row + copy.scored[1] - copy.scored[0])
        row = rows.stop
        known.pieces += zip(range(*copy.scored), scores.pieces[rows].tolist(), strict=True)
        for task, shares in scores.tags.items():
            total = shares[rows].sum(0, dtype=np.float64)
            known.sums[task] = known.sums[task] + total if task in known.sums else total
    assert row == len(scores.pieces), (row, len(scores.pieces))


def _best(shares: NDArray[np.float64], tags: Sequence[str], count: int) -> list[Candidate]:
    """Return the `count` most probable of `tags`, whose probabilities are `shares`."""
    order = np.argsort(-shares, kind="stable")[:count]
    return [Candidate(tags[place], float(shares[place])) for place in order.tolist()]
