"""Exact match and F1 of answers by the rules of CMRC 2018's own script (version 5).

Both leave marks out and letters small. F1 is over the longest stretch that answer and truth have in
common, in Chinese characters and words of other scripts; of several right answers the best counts.
"""

from collections.abc import Sequence
from typing import Any

from lert_ds.errors import UserError

_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def score(truths: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Return `em`, `f1` and their mean, `average`, each from 0 to 1.

    Args:
        truths: The right answers of each question.
        predictions: Its answer.
    """
    words = _Words()
    count = max(len(truths), 1)
    exact = sum(
        is_exact(answers, given) for answers, given in zip(truths, predictions, strict=True)
    )
    overlap = sum(
        max(words.f1(answer, given) for answer in answers)
        for answers, given in zip(truths, predictions, strict=True)
    )
    return {"em": exact / count, "f1": overlap / count, "average": (exact + overlap) / 2 / count}


def is_exact(answers: Sequence[str], given: str) -> bool:
    """Return whether `given` is one of `answers`, marks and capitals aside."""
    return any(_without_marks(answer) == _without_marks(given) for answer in answers)


class _Words:
    """Cuts text as the script does: a character of Chinese, a word of anything else."""

    def __init__(self) -> None:
        try:
            from nltk.tokenize import NLTKWordTokenizer
        except ModuleNotFoundError as error:
            raise UserError(
                "the F1 of reading comprehension needs nltk, which the official script cuts words "
                "with; say pip install nltk"
            ) from error
        # The script cuts sentences first, by a model that is a download of its own; it makes a
        # difference to an answer of several sentences of Latin letters alone.
        self._tokenizer: Any = NLTKWordTokenizer()

    def f1(self, answer: str, given: str) -> float:
        """Return the F1 of one answer against one truth."""
        wanted, found = self.segments(answer), self.segments(given)
        common = _longest_common(wanted, found)
        return 2 * common / (len(wanted) + len(found)) if common else 0.0

    def segments(self, text: str) -> list[str]:
        """Return the pieces of a text, without marks."""
        pieces: list[str] = []
        waiting = ""
        for sign in text.lower().strip():
            if sign in _MARKS:
                continue
            if "\u4e00" <= sign <= "\u9fa5":
                pieces += [*self._words(waiting), sign]
                waiting = ""
            else:
                waiting += sign
        return pieces + self._words(waiting)

    def _words(self, text: str) -> list[str]:
        words: list[str] = self._tokenizer.tokenize(text) if text else []
        return words


def _without_marks(text: str) -> str:
    return "".join(sign for sign in text.lower().strip() if sign not in _MARKS)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest stretch that both have."""
    longest, row = 0, [0] * (len(other) + 1)
    for piece in one:
        row = [0] + [
            before + 1 if piece == theirs else 0 for before, theirs in zip(row, other, strict=False)
        ]
        longest = max(longest, *row)
    return longest
