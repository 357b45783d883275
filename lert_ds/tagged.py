"""Sentences whose words are tagged, and how they are shown.

    今天天气很好。
      今天   pos nt 98.0 %   ner O 99.9 %   dep ADV 71.2 %
      天气   pos n 99.1 %    ner O 99.8 %   dep SBV 90.4 %

Needs no PyTorch, so that a device that runs graphs alone can use it.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from lert_ds.predictions import Candidate, aligned, show_candidate

_NO_TAG = "–"


@dataclass(frozen=True)
class TaggedWord:
    """What the model says of one word, having seen the sentence without it."""

    word: str
    pieces: list[Candidate]
    """The word's own pieces, and how probable the model finds each where all are masked."""
    tags: dict[str, list[Candidate]]
    """Task to the most probable tags, the best first; none where a word has no piece, as one of
    control characters has."""


@dataclass(frozen=True)
class TaggedSentence:
    """What the model says of the words of one text."""

    text: str
    words: list[TaggedWord]


def show(sentence: TaggedSentence, *, as_json: bool) -> str:
    """Return a tagged sentence as a table, or as one line of JSON."""
    if as_json:
        return json.dumps(dataclasses.asdict(sentence), ensure_ascii=False)
    return "\n".join(_table(sentence))


def _table(sentence: TaggedSentence) -> Iterator[str]:
    yield sentence.text
    counts: dict[str, int] = {}
    for word in sentence.words:
        for task, tags in word.tags.items():
            counts[task] = max(len(tags), counts.get(task, 0))
    rows = [
        [word.word] + [cell for task in counts for cell in _cells(word, task, counts[task])]
        for word in sentence.words
    ]
    for line in aligned(rows):
        yield f"  {line}"


def _cells(word: TaggedWord, task: str, count: int) -> list[str]:
    """Return the cells of one task, `count` of them, the name of the task in the first."""
    shown = [show_candidate(tag) for tag in word.tags.get(task, [])] or [_NO_TAG]
    shown += [""] * (count - len(shown))
    return [f"{task} {shown[0]}", *shown[1:]]
