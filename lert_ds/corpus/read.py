"""Files of text to documents, streaming: a split of a file → (number, text) of each document.

    prose.txt       one paragraph a line, a blank line ends a document
    crawl.jsonl     one document a line, under `text_key`
    wiki.parquet    one document a row, in the column `text_key`
    parsed.conllu   documents begin at "# newdoc"; where a file has none, each sentence is one
    annotated.jsonl annotated sentences; consecutive lines of one `doc` are a document

Each may be plain, .gz or .zst. A document's number is a hash of its text, so that what depends on it
(the held-out share) depends neither on the order of the files nor on who reads them.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from lert_ds.corpus.sources import count_line_ends, open_bytes, read_table
from lert_ds.errors import CorpusError

_LONGEST_PARAGRAPH_BYTES = 8_000_000
"""A longer line of plain text is cut, which bounds memory: 8 MB are 2.7 million Han characters."""
_LONGEST_RECORD_BYTES = 256_000_000
_HASHED = 1 << 52
"""Numbers of documents from here on are hashes; they stay exact in a double, as JSON's are."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_LINE_ENDS = re.compile("\r\n?|\n")
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


@dataclass(frozen=True)
class ReadOptions:
    """How text is read."""

    text_key: str = "text"
    drop_bad_text: bool = False
    """Drop and count what cannot be read, rather than refuse it."""
    documents: str = "blank_lines"
    """Where documents of plain text end: at blank_lines or at all lines."""
    document_characters: int = 20_000
    """A longer document is cut at the end of a paragraph."""


class Document(NamedTuple):
    """A document as it was read."""

    number: int
    """Its identity: a hash of its text."""
    text: str


class _Line(NamedTuple):
    text: str
    number: int
    """Line of the split, from 1."""
    cut: bool = False
    """The line goes on in the next piece."""


def read_documents(split: Split, options: ReadOptions, counts: Counter[str]) -> Iterator[Document]:
    """Yield the documents of a split; `counts` grows by what was dropped, by reason.

    Raises:
        CorpusError: names the file, and the line where there is one, of text that cannot be read.
    """
    reader = _Reader(split, options, counts)
    texts = {
        "txt": reader.plain,
        "jsonl": reader.json_lines,
        "parquet": reader.table,
        "conllu": reader.conllu,
        "annotated": reader.annotated,
    }[split.format]()
    previous = -1
    for text, number in texts:
        if not text or text.isspace():
            counts["document without text"] += 1
            continue
        number = number if number >= _HASHED else number_of(text)
        if number == previous:
            number ^= 1  # a copy right after the original is still another document
        previous = number
        yield Document(number, text)


def number_of(text: str) -> int:
    """Return the number of a document with this text, in [2^52, 2^53)."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return _HASHED | int.from_bytes(digest, "big") >> 12


def share_of(number: int) -> float:
    """Return where in [0, 1) the hash of a document's number lies; its last bit has no part."""
    if number < _HASHED:
        number = number_of(str(number))
    return ((number ^ _HASHED) >> 1) / (_HASHED >> 1)


class _Reader:
    """Reads one split; every method yields (text, number) of documents, number -1 to be hashed."""

    def __init__(self, split: Split, options: ReadOptions, counts: Counter[str]) -> None:
        self.split, self.options, self.counts = split, options, counts

    def plain(self) -> Iterator[tuple[str, int]]:
        paragraphs: list[str] = []
        characters = 0
        for line in self._lines(_LONGEST_PARAGRAPH_BYTES, cut=True):
            text = self._clean(line.text)
            blank = not text or text.isspace()
            if not blank:
                paragraphs.append(text)
                characters += len(text)
            ended = blank or (self.options.documents == "lines" and not line.cut)
            too_long = characters >= self.options.document_characters and not line.cut
            if paragraphs and (ended or too_long):
                if not ended:
                    self.counts["long document cut at a line end"] += 1
                yield "\n".join(paragraphs), -1
                paragraphs, characters = [], 0
        if paragraphs:
            yield "\n".join(paragraphs), -1

    def json_lines(self) -> Iterator[tuple[str, int]]:
        key = self.options.text_key
        for line in self._lines(_LONGEST_RECORD_BYTES):
            if not line.text or line.text.isspace():
                continue
            try:
                record = orjson.loads(line.text)
            except orjson.JSONDecodeError as error:
                self._bad(line.number, f"not valid JSON ({error})", "line dropped: not JSON")
                continue
            if not isinstance(record, dict) or not isinstance(record.get(key), str):
                has = (
                    ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
                )
                problem = (
                    f"no text under the key {key!r} (there is: {has}); set text_key to the key"
                )
                self._bad(line.number, problem, "line dropped: no text")
                continue
            yield from self._parts(record[key])

    def table(self) -> Iterator[tuple[str, int]]:
        key = self.options.text_key
        for number, record in read_table(self.split, [key]):
            if not isinstance(record[key], str):
                self._bad(number, f"no text in the column {key!r}", "row dropped: no text", "row ")
                continue
            yield from self._parts(record[key])

    def conllu(self) -> Iterator[tuple[str, int]]:
        blocks: list[str] = []
        for block, opens in self._conllu_blocks():
            if blocks and (opens or not self.split.marked):
                yield "\n\n".join(blocks), -1
                blocks = []
            blocks.append(block)
        if blocks:
            yield "\n\n".join(blocks), -1

    def annotated(self) -> Iterator[tuple[str, int]]:
        lines: list[str] = []
        present: int | None = None
        for line, doc in self._annotated_lines():
            if lines and doc != present:
                yield "\n".join(lines), present if present is not None else -1
                lines = []
            present = doc
            lines.append(line)
        if lines:
            yield "\n".join(lines), present if present is not None else -1

    def _conllu_blocks(self) -> Iterator[tuple[str, bool]]:
        """Yield each sentence's lines, and whether a document begins with it."""
        lines: list[str] = []
        opens = False
        for line in self._lines(_LONGEST_RECORD_BYTES):
            if line.text.strip():
                opens |= line.text.startswith("# newdoc")
                lines.append(line.text)
            elif lines:
                yield "\n".join(lines), opens
                lines, opens = [], False
        if lines:
            yield "\n".join(lines), opens

    def _annotated_lines(self) -> Iterator[tuple[str, int]]:
        if Path(self.split.path).suffix == ".parquet" or ".parquet." in self.split.path:
            for _, record in read_table(self.split, None):
                doc = record.get("doc")
                yield orjson.dumps(record).decode("utf-8"), doc if isinstance(doc, int) else 0
            return
        for line in self._lines(_LONGEST_RECORD_BYTES):
            if not line.text or line.text.isspace():
                continue
            try:
                record = orjson.loads(line.text)
                doc = int(record.get("doc", 0))
            except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
                self._bad(
                    line.number, f"not an annotated sentence ({error})", "line dropped: not JSON"
                )
                continue
            yield line.text, doc

    def _parts(self, text: str) -> Iterator[tuple[str, int]]:
        """Yield the text of a record, in parts cut at line ends where it is too long."""
        limit = self.options.document_characters
        text = self._clean(_LINE_ENDS.sub("\n", text) if "\r" in text else text)
        if len(text) <= limit:
            yield text, -1
            return
        start = 0
        while start < len(text):
            end = text.find("\n", min(start + limit, len(text)))
            if end >= 0:
                self.counts["long document cut at a line end"] += 1
            end = len(text) if end < 0 else end + 1
            yield text[start:end], -1
            start = end

    def _clean(self, text: str) -> str:
        """Return `text` without control characters, which are counted."""
        cleaned, stripped = _CONTROL.subn("", text)
        if stripped:
            self.counts["control character stripped"] += stripped
        return cleaned

    def _lines(self, limit: int, cut: bool = False) -> Iterator[_Line]:
        """Yield the lines of the split without their ends.

        Args:
            limit: bytes of the longest line.
            cut: cut longer lines; otherwise they are refused.
        """
        number = 1
        for raw, continued in self._raw_lines(limit, cut):
            if number == 1 and self.split.start == 0 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            text = self._decode(raw, number)
            if text is not None:
                pieces = _LINE_ENDS.split(text) if "\r" in text else [text]
                for piece in pieces[:-1]:  # carriage returns alone, as of old
                    yield _Line(piece, number)
                yield _Line(pieces[-1], number, continued)
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
                        raise CorpusError(f"{self._where(number)}: {problem}; break it up")
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
            self._bad(number, problem, "line dropped: binary")
            return None
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte 0x{raw[error.start]:02x} at {error.start + 1} of the line is not UTF-8"
            self._bad(number, problem, "line dropped: not UTF-8")
            return None

    def _bad(self, number: int, problem: str, reason: str, unit: str = "") -> None:
        if self.options.drop_bad_text:
            self.counts[reason] += 1
            return
        advice = 'mend it, or say on_bad_text="drop"'
        raise CorpusError(f"{self._where(number, unit)}: {problem}; {advice}")

    def _where(self, number: int, unit: str = "") -> str:
        if not unit and self.split.start:
            number += count_line_ends(self.split.path, self.split.start)
        return f"{self.split.path}:{unit}{number}"


def _cut_line(raw: bytes) -> tuple[bytes, bytes]:
    """Return the two parts of a line, cut after its last mark, else between two characters."""
    end = max(raw.rfind(mark.encode("utf-8")) + len(mark.encode("utf-8")) for mark in _MARKS)
    if end < len(raw) // 2:
        end = len(raw)
        while end > len(raw) - 4 and raw[end - 1] & 0xC0 == 0x80:
            end -= 1
        end -= raw[end - 1] >= 0xC0  # the first byte of a character that may be incomplete
    return raw[:end], raw[end:]
