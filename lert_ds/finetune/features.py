"""Examples as token ids: a row of the model's input, and what is to be learnt of it.

    [CLS] first part [SEP]   or   [CLS] first part [SEP] second part [SEP]

What is longer than the model takes is read in windows that overlap; each token has one window that
answers for it, the one where it stands deepest.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class Feature(NamedTuple):
    """A row of the model's input."""

    input_ids: Ids
    """[length], special tokens among them."""
    second: int
    """Where the second part begins, which has token type 1; the length where there is none."""
    labels: Any
    """Of a class its number; of tags int64 [length], UNKNOWN where a token has none; of an answer
    its first and its last token."""
    example: int
    """Place of the example that it is of."""
    origin: Any = None
    """What leads from its tokens back to the example; each kind of task has its own."""


UNKNOWN = -100
"""A label that counts nowhere: torch's own."""


class Window(NamedTuple):
    """A stretch of a sequence that is read at once."""

    start: int
    end: int
    answers_from: int
    """The first place that this window answers for."""
    answers_to: int
    """The place after the last one."""


def windows(length: int, room: int, overlap: int) -> list[Window]:
    """Return windows of at most `room` places that cover `length` places and overlap.

    They are as many as are needed and of the same size but for one place: short ones cost attention
    less, and no token stands at the edge of a full one for want of a neighbour.

    Args:
        length: Of the whole.
        room: Most places of a window.
        overlap: Places that two neighbours have in common, at least; below `room`.
    """
    assert 0 <= overlap < room, (overlap, room)
    if length <= room:
        return [Window(0, length, 0, length)]
    count = -(-(length - overlap) // (room - overlap))
    size = -(-(length + (count - 1) * overlap) // count)
    starts = [round(k * (length - size) / (count - 1)) for k in range(count)]
    borders = [0] + [(after + before + size) // 2 for before, after in itertools.pairwise(starts)]
    borders.append(length)
    return [
        Window(start, start + size, borders[k], borders[k + 1]) for k, start in enumerate(starts)
    ]


def with_special(
    tokenizer: Any, first: Sequence[int], second: Sequence[int] | None
) -> tuple[Ids, int]:
    """Return the ids of a row with [CLS] and [SEP], and where its second part begins."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    row = [cls, *first, sep]
    begins = len(row)
    if second is not None:
        row += [*second, sep]
    return np.array(row, dtype=np.int32), begins


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[Sequence[int]]:
    """Return the ids of texts, without special tokens."""

    def ids(some: Sequence[str]) -> Any:
        return tokenizer(
            list(some), add_special_tokens=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )["input_ids"]  # fmt: skip

    return in_chunks(ids, texts)


def in_chunks(
    tokenize: Callable[[Sequence[str]], Any], texts: Sequence[str], size: int = 4096
) -> list[Any]:
    """Return what a tokenizer makes of texts, some at a time: of all at once it keeps too much."""
    found: list[Any] = []
    for start in range(0, len(texts), size):
        found += tokenize(texts[start : start + size])
    return found
