"""The contract of the annotation stage: one sentence as words with their tags."""

from dataclasses import dataclass

import orjson

from lert_ds.errors import CorpusError
from lert_ds.labels import TASKS


@dataclass(frozen=True, slots=True)
class AnnotatedSentence:
    """Words of a sentence and, for each task that was annotated, one tag (or None) a word.

    `text` is the sentence as it stood in the document, spaces included; the words stand in it in
    order, and what lies between them is white space. Stored one a JSON line:
    `{"text": …, "words": […], "pos": […] | null, "ner": …, "dep": …, "doc": int}`.
    """

    text: str
    words: list[str]
    pos: list[str | None] | None = None
    ner: list[str | None] | None = None
    dep: list[str | None] | None = None
    doc: int = 0

    def to_json(self) -> bytes:
        """Return the sentence as one JSON line, without its line end."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, line: bytes | str, where: str) -> "AnnotatedSentence":
        """Return the sentence that a JSON line holds; `where` names the line in an error.

        `text` may be absent: it is then the words joined without spaces.
        """
        try:
            record = orjson.loads(line)
            words = record["words"]
            tags = record.get("pos"), record.get("ner"), record.get("dep")
            text = record.get("text") or "".join(words)
            sentence = cls(text, words, *tags, int(record.get("doc", 0)))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorpusError(
                f"{where}: not an annotated sentence ({error!r}); each line needs "
                '{"words": [...], "pos": [...], "ner": [...], "dep": [...], "doc": 0}'
            ) from error
        for task, found in zip(TASKS, tags, strict=True):
            if found is not None and len(found) != len(words):
                raise CorpusError(f"{where}: {len(words)} words but {len(found)} {task} tags")
        return sentence
