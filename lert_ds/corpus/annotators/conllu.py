"""CoNLL-U text, annotated by any parser or by hand, to annotated sentences.

    # text = 他来北京。
    1  他    …  PRON   r   …  SBV …  NER=O|SpaceAfter=No       words 他 来 北京 。
    2  来    …  VERB   v   …  HED …  NER=O|SpaceAfter=No   →   pos   r  v  ns   wp
    3  北京  …  PROPN  ns  …  VOB …  NER=S-Ns|SpaceAfter=No    ner   O  O  S-Ns O
    4  。    …  PUNCT  wp  …  WP  …  NER=O                     dep   SBV HED VOB WP

Words are the FORM column, parts of speech XPOS or UPOS, dependency relations DEPREL, entities the
`NER=` of MISC; `_` or nothing is no tag. Format: universaldependencies.org/format.html.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import is_blank, locate_words
from lert_ds.errors import CorpusError
from lert_ds.labels import LTP_TAGS, TagSets

_FORM, _UPOS, _XPOS, _DEPREL, _MISC = 1, 3, 4, 7, 9
_COLUMNS = 10
_ID = re.compile(r"([0-9]+)(?:-([0-9]+)|\.[0-9]+)?")
_TEXT = re.compile(r"^# *text *= ?(.*)$", re.MULTILINE)


class ConlluAnnotator:
    """Reads CoNLL-U; a document is its text, a sentence one of its blocks, comments included."""

    def __init__(
        self,
        tag_sets: TagSets = LTP_TAGS,
        pos_column: Literal["xpos", "upos"] = "xpos",
        strip_subtypes: bool = False,
    ) -> None:
        """Take the tags that the text may hold and where to find them."""
        self.tag_sets = tag_sets
        self.counts: Counter[str] = Counter()
        self._pos_column = _XPOS if pos_column == "xpos" else _UPOS
        self._strip_subtypes = strip_subtypes

    def sentences(self, text: str) -> list[str]:
        """Return the blocks of a document, each checked line by line.

        Raises:
            CorpusError: names the line, counted from the document's first, and shows it.
        """
        blocks: list[str] = []
        block: list[str] = []
        checker = _LineChecker()
        for number, line in enumerate(text.split("\n"), start=1):
            row = line.removesuffix("\r")
            if not is_blank(row):
                checker.check(row, number)
                block.append(row)
                continue
            if checker.words:
                blocks.append("\n".join(block))
            checker.end(number)
            block = []
        if checker.words:
            blocks.append("\n".join(block))
        checker.end(number + 1)
        return blocks

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        """Yield each (document number, block) as the sentence it holds."""
        for document, block in sentences:
            words, spaces = self._words(block)
            if not words:
                self.counts["conllu sentence without words"] += 1
            forms = [word[_FORM] for word in words]
            pos = [_tag(word[self._pos_column]) for word in words]
            dep = [self._relation(word[_DEPREL]) for word in words]
            ner = [_tag(_misc(word[_MISC], "NER")) for word in words]
            yield AnnotatedSentence(
                text=self._text(block, forms, spaces),
                words=forms,
                pos=pos if any(pos) else None,
                ner=ner if any(ner) else None,
                dep=dep if any(dep) else None,
                doc=document,
            )

    def _words(self, block: str) -> tuple[list[list[str]], list[bool]]:
        """Return the columns of the words of the text, and whether a space follows each.

        A range such as `1-2` is what the text shows. It stands for its words where they join to
        it; where they do not (Spanish al = a + el) it is one word, without tags.
        """
        words: list[list[str]] = []
        spaces: list[bool] = []
        rows = (line.split("\t") for line in block.split("\n") if not line.startswith("#"))
        range_row: list[str] | None = None
        inside: list[list[str]] = []
        range_end = 0
        for row in rows:
            if "." in row[0]:
                continue  # an empty node is not in the text
            first, dash, last = row[0].partition("-")
            if dash:
                range_row, range_end, inside = row, int(last), []
                continue
            if range_row is None:
                words.append(row)
                spaces.append(_space_after(row))
                continue
            inside.append(row)
            if int(first) == range_end:
                shown = self._resolve_range(range_row, inside)
                words.extend(shown)
                spaces.extend([False] * (len(shown) - 1) + [_space_after(range_row)])
                range_row = None
        keep = [place for place, word in enumerate(words) if not is_blank(word[_FORM])]
        return [words[place] for place in keep], [spaces[place] for place in keep]

    def _resolve_range(self, range_row: list[str], inside: list[list[str]]) -> list[list[str]]:
        if "".join(word[_FORM] for word in inside) == range_row[_FORM]:
            return inside
        self.counts["conllu multiword token that is not its words joined"] += 1
        return [["_" if place != _FORM else range_row[_FORM] for place in range(_COLUMNS)]]

    def _text(self, block: str, forms: list[str], spaces: list[bool]) -> str:
        """Return the `# text` of a block where the words fit it, else the words put together."""
        comment = _TEXT.search(block)
        if comment is not None:
            text = comment.group(1).strip()
            if locate_words(text, forms) is not None:
                return text
            self.counts["conllu text comment that its words do not fit"] += 1
        parts = [form + (" " if space else "") for form, space in zip(forms, spaces, strict=True)]
        return "".join(parts).rstrip(" ")

    def _relation(self, cell: str) -> str | None:
        return _tag(cell.partition(":")[0] if self._strip_subtypes else cell)


class _LineChecker:
    """Refuses a line that is no CoNLL-U, by its number."""

    def __init__(self) -> None:
        self.words = 0
        self._range_end = 0

    def check(self, line: str, number: int) -> None:
        """Check the next line of a sentence."""
        if not line.startswith("#"):
            problem = self._problem(line)
            if problem is not None:
                raise CorpusError(f"line {number}: {problem}; the line is {line[:60]!r}")

    def _problem(self, line: str) -> str | None:
        columns = line.count("\t") + 1
        if columns != _COLUMNS:
            return f"{columns} columns where CoNLL-U has {_COLUMNS}, separated by tabs"
        identifier, form = line.split("\t", 2)[:2]
        match = _ID.fullmatch(identifier)
        if match is None:
            return f"ID {identifier!r} is no number (1), range (1-2) or empty node (1.1)"
        if not form:
            return "FORM, the second column, is empty"
        if "." in identifier:
            return None
        first, last = int(match.group(1)), int(match.group(2) or 0)
        if first != self.words + 1:
            return f"ID {identifier} where {self.words + 1} is next"
        if match.group(2) is None:
            self.words += 1
        elif last < first or first <= self._range_end:
            return f"the range {identifier} is empty or overlaps with the one before"
        else:
            self._range_end = last
        return None

    def end(self, number: int) -> None:
        """Check what a sentence that ends before line `number` must hold, and start afresh."""
        if self._range_end > self.words:
            raise CorpusError(
                f"line {number}: the sentence ends at word {self.words}, inside a range that "
                f"goes to word {self._range_end}"
            )
        self.words = self._range_end = 0


def _tag(cell: str | None) -> str | None:
    return None if cell in (None, "", "_") else cell


def _misc(cell: str, key: str) -> str | None:
    """Return the value of `key` in a MISC cell such as `NER=O|SpaceAfter=No`."""
    if key not in cell:
        return None
    for item in cell.split("|"):
        name, _, value = item.partition("=")
        if name == key:
            return value
    return None


def _space_after(row: list[str]) -> bool:
    return _misc(row[_MISC], "SpaceAfter") != "No"
