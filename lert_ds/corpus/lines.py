"""A split of a file of text to its lines, in bounded memory; what is no text names its line."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lert_ds.corpus.sources import count_line_ends, open_bytes, suffixes_of
from lert_ds.errors import CorpusError

LINE_ENDS = re.compile("\r\n?|\n")
_MARKS = "。！？!?；;"


@dataclass(frozen=True)
class Split:
    """A part of a file that one task reads: it begins and ends at borders of documents."""

    path: str
    format: str
    """txt, jsonl, parquet, conllu or annotated."""
    compression: str
    """gz, zst, or nothing."""
    start: int
    """First byte, or first row group."""
    end: int
    """Byte or row group after the last; -1 reads to the end."""
    bytes: int
    """Size on disk, for the plan and its estimates."""
    marked: bool = False
    """CoNLL-U: whether the file marks its documents."""


class Line(NamedTuple):
    """A line, or a piece of a very long one."""

    text: str
    number: int
    """Line of the split, from 1."""
    cut: bool = False
    """The line goes on in the next piece."""


def place_of(split: Split, line: int) -> str:
    """Return `file:line` for a line of a split, or `file:row n` where it is a table."""
    if suffixes_of(Path(split.path))[0] == "parquet":
        return f"{split.path}:row {line}"
    before = count_line_ends(split.path, split.start) if split.start else 0
    return f"{split.path}:{before + line}"


class LineReader:
    """Reads the lines of one split; `counts` grows by what was dropped, by reason."""

    def __init__(self, split: Split, drop_bad_text: bool, counts: Counter[str]) -> None:
        """Make a reader that drops what is no UTF-8 text, or refuses it."""
        self.split, self.counts = split, counts
        self._drop_bad_text = drop_bad_text

    def lines(self, limit: int, cut: bool = False) -> Iterator[Line]:
        """Yield the lines of the split without their ends.

        Args:
            limit: bytes of the longest line.
            cut: cut longer lines; otherwise they are refused.

        Raises:
            CorpusError: names the file and the line that cannot be read.
        """
        number = 1
        for raw, continued in self._raw_lines(limit, cut):
            if number == 1 and self.split.start == 0 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            text = self._decode(raw, number)
            if text is not None:
                pieces = LINE_ENDS.split(text) if "\r" in text else [text]
                for piece in pieces[:-1]:  # carriage returns alone, as of old
                    yield Line(piece, number)
                yield Line(pieces[-1], number, continued)
            number += not continued

    def _raw_lines(self, limit: int, cut: bool) -> Iterator[tuple[bytes, bool]]:
        """Yield the bytes of each line or piece of one, and whether the line goes on."""
        left = self.split.end - self.split.start if self.split.end >= 0 else None
        rest = b""
        number = 1
        with open_bytes(self.split) as file:
            while left is None or left > 0:
                raw = file.readline(limit if left is None else min(limit, left))
                if not raw:
                    break
                if left is not None:
                    left -= len(raw)
                raw = rest + raw
                rest = b""
                whole = raw.endswith(b"\n")
                if not whole and len(raw) >= limit:
                    if not cut:
                        problem = f"a line of more than {limit // 1_000_000} MB"
                        raise CorpusError(f"{place_of(self.split, number)}: {problem}; break it up")
                    raw, rest = _cut_line(raw)
                    self.counts["long line cut"] += 1
                    yield raw, True
                    continue
                number += 1
                yield raw.rstrip(b"\r\n"), False
        if rest:
            yield rest, False

    def _decode(self, raw: bytes, number: int) -> str | None:
        if b"\0" in raw:
            problem = "a NUL byte, so it is binary or UTF-16; give UTF-8 text"
            self.bad(number, problem, "line dropped: binary")
            return None
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte 0x{raw[error.start]:02x} at {error.start + 1} of the line is not UTF-8"
            self.bad(number, problem, "line dropped: not UTF-8")
            return None

    def bad(self, number: int, problem: str, reason: str) -> None:
        """Refuse a line for its problem, or count it by its reason.

        Raises:
            CorpusError: bad text is not to be dropped.
        """
        if self._drop_bad_text:
            self.counts[reason] += 1
            return
        advice = 'mend it, or say on_bad_text="drop"'
        raise CorpusError(f"{place_of(self.split, number)}: {problem}; {advice}")


def _cut_line(raw: bytes) -> tuple[bytes, bytes]:
    """Return the two parts of a line, cut after its last mark, else between two characters."""
    end = max(raw.rfind(mark.encode("utf-8")) + len(mark.encode("utf-8")) for mark in _MARKS)
    if end < len(raw) // 2:
        end = len(raw)
        while end > len(raw) - 4 and raw[end - 1] & 0xC0 == 0x80:
            end -= 1
        end -= raw[end - 1] >= 0xC0  # the first byte of a character that may be incomplete
    return raw[:end], raw[end:]
