"""Files of text to documents, streaming: a split of a file → (number, text) of each document.

    prose.txt       one paragraph a line, a blank line ends a document
    crawl.jsonl     one document a line, under `text_key`
    wiki.parquet    one document a row, in the column `text_key`
    parsed.conllu   documents begin at "# newdoc"; where a file has none, each sentence is one
    annotated.jsonl annotated sentences; consecutive lines of one `doc` are a document

Each may be plain, .gz or .zst. A document's number is a hash of its text, so that what depends on
it (the held-out share) depends neither on the order of the files nor on who reads them.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from lert_ds.corpus.lines import LINE_ENDS, LineReader, Split
from lert_ds.corpus.sources import read_table, suffixes_of

_LONGEST_PARAGRAPH_BYTES = 8_000_000
"""A longer line of plain text is cut, which bounds memory: 8 MB are 2.7 million Han characters."""
_LONGEST_RECORD_BYTES = 256_000_000
_HASHED = 1 << 52
"""Numbers of documents from here on are hashes; they stay exact in a double, as JSON's are."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")


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
    line: int
    """Line of the split at which it begins, from 1; row of the file for a table."""


class _Text(NamedTuple):
    text: str
    number: int = -1
    """-1: to be hashed."""
    line: int = 1


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
    for text, given, line in texts:
        if not text or text.isspace():
            counts["document without text"] += 1
            continue
        number = given if _HASHED <= given < 2 * _HASHED else number_of(text)
        if number == previous:
            number ^= 1  # a copy right after the original is still another document
        previous = number
        yield Document(number, text, line)


def number_of(text: str) -> int:
    """Return the number of a document with this text, in [2^52, 2^53)."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return _HASHED | int.from_bytes(digest, "big") >> 12


def share_of(number: int) -> float:
    """Return where in [0, 1) the hash of a document's number lies; its last bit has no part."""
    assert number >= _HASHED, number
    return ((number ^ _HASHED) >> 1) / (_HASHED >> 1)


class _Reader(LineReader):
    """Reads one split; every public method yields the documents of one format."""

    def __init__(self, split: Split, options: ReadOptions, counts: Counter[str]) -> None:
        super().__init__(split, options.drop_bad_text, counts)
        self.options = options
        # An annotated character takes some 50 characters of CoNLL-U or JSON.
        self._most_annotated = 50 * options.document_characters

    def plain(self) -> Iterator[_Text]:
        paragraphs: list[str] = []
        characters, first, was_cut = 0, 1, False
        for line in self.lines(_LONGEST_PARAGRAPH_BYTES, cut=True):
            text = self._clean(line.text)
            blank = not text or text.isspace()
            if not blank:
                first = first if paragraphs else line.number
                if was_cut:
                    self.counts["long document cut at a line end"] += 1
                paragraphs.append(text)
                characters += len(text)
            ended = blank or (self.options.documents == "lines" and not line.cut)
            too_long = characters >= self.options.document_characters and not line.cut
            if paragraphs and (ended or too_long):
                yield _Text("\n".join(paragraphs), line=first)
                paragraphs, characters, was_cut = [], 0, not ended
            elif not line.cut:
                was_cut = False
        if paragraphs:
            yield _Text("\n".join(paragraphs), line=first)

    def json_lines(self) -> Iterator[_Text]:
        key = self.options.text_key
        for line in self.lines(_LONGEST_RECORD_BYTES):
            if not line.text or line.text.isspace():
                continue
            try:
                record = orjson.loads(line.text)
            except orjson.JSONDecodeError as error:
                self.bad(line.number, f"not valid JSON ({error})", "line dropped: not JSON")
                continue
            if not isinstance(record, dict) or not isinstance(record.get(key), str):
                has = (
                    ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
                )
                problem = (
                    f"no text under the key {key!r} (there is: {has}); set text_key to the key"
                )
                self.bad(line.number, problem, "line dropped: no text")
                continue
            yield from self._parts(record[key], line.number)

    def table(self) -> Iterator[_Text]:
        key = self.options.text_key
        for number, record in read_table(self.split, [key]):
            if not isinstance(record[key], str):
                self.bad(number, f"no text in the column {key!r}", "row dropped: no text")
                continue
            yield from self._parts(record[key], number)

    def conllu(self) -> Iterator[_Text]:
        lines: list[str] = []
        first, characters, has_words = 1, 0, False
        for line in self.lines(_LONGEST_RECORD_BYTES):
            blank = not line.text or line.text.isspace()
            if blank:
                ends = not self.split.marked or characters >= self._most_annotated
            else:
                ends = line.text.startswith("# newdoc")
            if ends and has_words:
                yield _Text("\n".join(lines), line=first)
                lines, first, characters, has_words = [], line.number, 0, False
            has_words |= not blank and not line.text.startswith("#")
            lines.append(line.text)
            characters += len(line.text)
        if has_words:
            yield _Text("\n".join(lines), line=first)

    def annotated(self) -> Iterator[_Text]:
        lines: list[str] = []
        first, characters, present = 1, 0, 0
        for line, number, doc in self._annotated_lines():
            if lines and (doc != present or characters >= self._most_annotated):
                yield _Text("\n".join(lines), present, first)
                lines, characters = [], 0
            if not lines:
                first = number
            present = doc
            lines.append(line)
            characters += len(line)
        if lines:
            yield _Text("\n".join(lines), present, first)

    def _annotated_lines(self) -> Iterator[tuple[str, int, int]]:
        """Yield each sentence's JSON, its line or row, and its document."""
        if suffixes_of(Path(self.split.path))[0] == "parquet":
            for row, record in read_table(self.split, None):
                doc = record.get("doc")
                yield orjson.dumps(record).decode("utf-8"), row, doc if isinstance(doc, int) else 0
            return
        for line in self.lines(_LONGEST_RECORD_BYTES):
            if not line.text or line.text.isspace():
                continue
            try:
                doc = int(orjson.loads(line.text).get("doc", 0))
            except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
                problem = f"not an annotated sentence ({error})"
                self.bad(line.number, problem, "line dropped: not JSON")
                continue
            yield line.text, line.number, doc

    def _parts(self, text: str, line: int) -> Iterator[_Text]:
        """Yield the text of a record, in parts cut at line ends where it is too long."""
        limit = self.options.document_characters
        text = self._clean(LINE_ENDS.sub("\n", text) if "\r" in text else text)
        if len(text) <= limit:
            yield _Text(text, line=line)
            return
        start = 0
        while start < len(text):
            end = text.find("\n", min(start + limit, len(text)))
            if end >= 0:
                self.counts["long document cut at a line end"] += 1
            end = len(text) if end < 0 else end + 1
            yield _Text(text[start:end], line=line)
            start = end

    def _clean(self, text: str) -> str:
        """Return `text` without control characters, which are counted."""
        cleaned, stripped = _CONTROL.subn("", text)
        if stripped:
            self.counts["control character stripped"] += stripped
        return cleaned
