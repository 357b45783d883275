"""Words with tags × WordPieces: every token gets its word's tags and whether it opens a word.

    text    我爱GitHub。                      words   我/r  爱/v  GitHub/ws  。/wp
    pieces  我   爱   gi   ##th  ##ub  。
    opens   1    1    1    0     0     1
    pos     r    v    ws   ws    ws    wp

Both sides are laid over the characters of the sentence. A piece that lies in no word, or in more
than one, has no tags and is trained as a masked token only; what it was is counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lert_ds.corpus.encode import Encoder
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.labels import IGNORE_INDEX, TASKS, TagSets

Array = npt.NDArray[Any]

_NO_WORD = -1
_SEARCH_CHARACTERS = 16  # how far ahead a word that is not where it should be is looked for
_NAMED_UNKNOWN_TAGS = 100  # distinct tags that the counts name; garbage may have millions


class Tokens(NamedTuple):
    """Aligned tokens; every array is [tokens]."""

    ids: Array
    """uint16."""
    word_starts: Array
    """bool: the token opens a word. A word is what lies between two starts."""
    tags: dict[str, Array]
    """Task to uint8 class, IGNORE_INDEX where unknown."""

    def part(self, start: int, end: int) -> "Tokens":
        """Return the tokens from `start` to before `end`, as views."""
        tags = {task: classes[start:end] for task, classes in self.tags.items()}
        return Tokens(self.ids[start:end], self.word_starts[start:end], tags)


class _Classes(dict[str | None, int]):
    """Tag to class; any other tag, or None, to IGNORE_INDEX."""

    def __missing__(self, _: str | None) -> int:
        return IGNORE_INDEX


class Aligner:
    """Aligns sentences with the pieces of one tokenizer and the classes of one set of tags."""

    def __init__(self, encoder: Encoder, tag_sets: TagSets) -> None:
        """Make an aligner; `counts` grows by what could not be aligned, by reason."""
        self.counts: Counter[str] = Counter()
        self._encoder = encoder
        self._classes = {
            task: _Classes({tag: number for number, tag in enumerate(tag_sets.get(task, ()))})
            for task in TASKS
        }

    def align(self, sentences: Sequence[AnnotatedSentence]) -> tuple[Tokens, Array]:
        """Return the tokens of all sentences in one, and the end of each sentence in them.

        The ends are int64 [sentences]: sentence i has the tokens from ends[i - 1] to ends[i].
        """
        text = "\n".join(sentence.text for sentence in sentences)
        lengths = np.fromiter((len(sentence.text) + 1 for sentence in sentences), np.int64)
        word_of_character, words = self._lay_out_words(sentences, len(text))
        ids, starts, ends = self._encoder.encode(text)

        first, last = word_of_character[starts], word_of_character[ends - 1]
        spans = first != last
        inside = ~spans & (first != _NO_WORD)
        # A token goes on with the word that the token before it ended in, else it opens one.
        before = np.concatenate([[_NO_WORD], last[:-1]])
        word_starts = (first != before) | (first == _NO_WORD)
        tags = {}
        for task in TASKS:
            classes = self._word_classes(sentences, task, words)
            tags[task] = np.where(inside, classes[first], np.uint8(IGNORE_INDEX))
        self._count(words, first, last, spans)
        tokens = Tokens(ids.astype(np.uint16), word_starts, tags)
        return tokens, np.searchsorted(starts, np.cumsum(lengths))

    def _lay_out_words(
        self, sentences: Sequence[AnnotatedSentence], characters: int
    ) -> tuple[Array, int]:
        """Return the word of every character of the joined text, and how many words there are."""
        gaps: list[int] = []  # characters between the end of the word before and the word
        lengths: list[int] = []
        tail = 0
        for sentence in sentences:
            words = sentence.words
            if "".join(words) == sentence.text:
                places = [0] * len(words)
                sizes = list(map(len, words))
                rest = 0
            else:
                places, sizes, rest = self._locate(sentence.text, words)
            if sizes:
                places[0] += tail
                tail = 0
            gaps += places
            lengths += sizes
            tail += rest + 1  # 1: the line end that joins sentences
        length = np.array(lengths, dtype=np.int64)
        starts = np.cumsum(np.array(gaps, dtype=np.int64) + length) - length
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        word_of_character = np.full(characters + 1, _NO_WORD, dtype=np.int64)
        word_of_character[np.repeat(starts, length) + within] = np.repeat(
            np.arange(len(length)), length
        )
        return word_of_character, len(lengths)

    def _locate(self, text: str, words: Sequence[str]) -> tuple[list[int], list[int], int]:
        """Return for each word the gap before it and its length, and the characters left over.

        A word that the text does not have where it should gets length 0: it has no token.
        """
        gaps, lengths = [], []
        place = 0
        lost = 0  # characters of words not found since the last that was
        for word in words:
            found = place
            while found < len(text) and text[found].isspace() and not text.startswith(word, found):
                found += 1
            if not text.startswith(word, found):
                found = text.find(word, found, found + lost + len(word) + _SEARCH_CHARACTERS)
            if found < 0 or not word:
                self.counts["word not found in its sentence"] += 1
                lost += len(word)
                gaps.append(0)
                lengths.append(0)
                continue
            gaps.append(found - place)
            lengths.append(len(word))
            place = found + len(word)
            lost = 0
        return gaps, lengths, len(text) - place

    def _word_classes(self, sentences: Sequence[AnnotatedSentence], task: str, words: int) -> Array:
        """Return the class of every word, uint8 [words + 1]; the last stands for no word."""
        known = self._classes[task]
        if all(getattr(sentence, task) is None for sentence in sentences):
            self.counts[f"{task}: sentence without tags (words)"] += words
            return np.full(words + 1, IGNORE_INDEX, dtype=np.uint8)
        classes: list[int] = []
        for sentence in sentences:
            tags: Sequence[str | None] | None = getattr(sentence, task)
            if tags is None:
                self.counts[f"{task}: sentence without tags (words)"] += len(sentence.words)
                classes += [IGNORE_INDEX] * len(sentence.words)
                continue
            found = list(map(known.__getitem__, tags))
            if IGNORE_INDEX in found:
                self._count_unknown(task, tags, known)
            classes += found
        assert len(classes) == words, (len(classes), words)
        return np.array([*classes, IGNORE_INDEX], dtype=np.uint8)

    def _count_unknown(
        self, task: str, tags: Sequence[str | None], known: Mapping[str | None, int]
    ) -> None:
        for tag in tags:
            if tag is None:
                self.counts[f"{task}: word without a tag"] += 1
            elif tag not in known:
                reason = f"{task}: tag {tag!r} is not in the tag set"
                if reason not in self.counts and len(self.counts) >= _NAMED_UNKNOWN_TAGS:
                    reason = f"{task}: tag is not in the tag set"
                self.counts[reason] += 1

    def _count(self, words: int, first: Array, last: Array, spans: Array) -> None:
        """Count the tokens and words that have no partner."""
        touched = np.zeros(words + 1, dtype=bool)
        touched[first] = touched[last] = True
        for reason, count in (
            ("token spans several words", np.count_nonzero(spans)),
            ("token outside words", np.count_nonzero(~spans & (first == _NO_WORD))),
            ("word without a token", words - np.count_nonzero(touched[:words])),
        ):
            if count:
                self.counts[reason] += int(count)
