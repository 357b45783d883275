"""What fills a [MASK]: the texts that ask, the answers, and how they are shown.

Needs no PyTorch, so that a device that runs graphs alone can use it.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lert_ds.errors import UserError
from lert_ds.text_table import columns_of


@dataclass(frozen=True)
class Candidate:
    """A piece or a tag, and how probable it is."""

    name: str
    probability: float


@dataclass(frozen=True)
class MaskPrediction:
    """What the model says of one [MASK]."""

    pieces: list[Candidate]
    """Word pieces, the most probable first."""
    tags: dict[str, Candidate]
    """Task to the most probable tag."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text."""

    text: str
    filled: str
    """The text with the most probable piece in the place of each [MASK]."""
    masks: list[MaskPrediction]
    """One for each [MASK], in order."""


class SpecialTokens(NamedTuple):
    """How a tokenizer spells the tokens that a text is encoded with."""

    mask: str = "[MASK]"
    cls: str = "[CLS]"
    sep: str = "[SEP]"


def check_top_k(top_k: int) -> None:
    """Refuse to show no piece at all.

    Raises:
        UserError: `top_k` is below 1.
    """
    if top_k < 1:
        raise UserError(f"--top-k {top_k}: at least 1")


def encode(
    text: str, to_ids: Callable[[str], list[int]], special: SpecialTokens, positions: int
) -> list[int]:
    """Return the ids of `text`, [CLS] and [SEP] among them.

    Args:
        text: With one [MASK] or more.
        to_ids: What the tokenizer makes of a text.
        special: How the tokenizer spells its special tokens.
        positions: Most tokens that the model takes.

    Raises:
        UserError: there is no [MASK] in it, or it is too long.
    """
    if special.mask not in text:
        raise UserError(
            f"{shortened(text)!r}: there is no {special.mask} in it; put one where a piece is to "
            "be filled in, one for each Chinese character, or say --tag to tag its words"
        )
    ids = to_ids(text)
    if len(ids) > positions:
        raise UserError(
            f"{shortened(text)!r}: {len(ids)} tokens with {special.cls} and {special.sep}, "
            f"the model takes {positions}; shorten the text"
        )
    return ids


def shortened(text: str) -> str:
    """Return a text as a message names it: its first 40 characters."""
    return text if len(text) <= 40 else f"{text[:40]}…"


def by_text(
    texts: Sequence[str],
    pieces: Sequence[list[Candidate]],
    tags: dict[str, list[list[Candidate]]],
    mask_token: str,
) -> list[Prediction]:
    """Return what is said of every [MASK] of a batch as predictions of its texts.

    Args:
        texts: In the order of the batch.
        pieces: Of each [MASK], through all texts, the most probable pieces.
        tags: Task to the most probable tags of each [MASK].
        mask_token: How the texts spell it.
    """
    masks = iter(
        [
            MaskPrediction(best, {task: rows[number][0] for task, rows in tags.items()})
            for number, best in enumerate(pieces)
        ]
    )
    predictions = []
    for text in texts:
        first, *rest = text.split(mask_token)
        own = [next(masks) for _ in rest]
        filled = first + "".join(
            mask.pieces[0].name.removeprefix("##") + part
            for mask, part in zip(own, rest, strict=True)
        )
        predictions.append(Prediction(text, filled, own))
    assert next(masks, None) is None
    return predictions


def show(prediction: Prediction, *, as_json: bool) -> str:
    """Return a prediction as a table, or as one line of JSON."""
    if as_json:
        return json.dumps(dataclasses.asdict(prediction), ensure_ascii=False)
    return "\n".join(_table(prediction))


def read_texts(given: Sequence[str]) -> list[str]:
    """Return the texts of a command line; - stands for the lines of standard input.

    Raises:
        UserError: standard input is not UTF-8, or there is no text.
    """
    texts = [text for word in given for text in (_lines() if word == "-" else [word])]
    if not texts:
        raise UserError("standard input: there is no text in it; give one text a line")
    return texts


def _table(prediction: Prediction) -> Iterator[str]:
    yield prediction.filled
    rows = [
        [show_candidate(candidate) for candidate in mask.pieces]
        + [f"{task} {show_candidate(tag)}" for task, tag in mask.tags.items()]
        for mask in prediction.masks
    ]
    digits = len(str(len(rows)))
    for number, line in enumerate(aligned(rows), 1):
        yield f"  [MASK] {number:<{digits}}   {line}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line a row, cells of a column below each other; rows have equally many."""
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(
            cell + " " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def show_candidate(candidate: Candidate) -> str:
    """Return a candidate as the tables show it, `n 98.0 %`."""
    return f"{candidate.name} {100 * candidate.probability:.1f} %"


def _lines() -> list[str]:
    """Return the lines of standard input that are not blank."""
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input: not UTF-8 at byte {error.start}; convert it, with iconv say"
        ) from error
    return [line.rstrip("\r") for line in content.split("\n") if line.strip()]
