"""JSON lines of annotated sentences, of any tool or of an earlier run, to annotated sentences.

{"text": "他来了。", "words": ["他", "来", "了", "。"], "pos": ["r", "v", "u", "wp"],
 "ner": null, "dep": ["SBV", "HED", "RAD", "WP"], "doc": 0}
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import orjson

from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import has_blank, is_blank, locate_words
from lert_ds.errors import CorpusError
from lert_ds.labels import LTP_TAGS, TASKS, TagSets


class PrecomputedAnnotator:
    """Reads what was annotated before; a document is JSON lines, a sentence is one of them."""

    def __init__(self, tag_sets: TagSets = LTP_TAGS) -> None:
        """Take the tags that the lines may hold."""
        self.tag_sets = tag_sets
        self.counts: Counter[str] = Counter()
        self._checked: dict[str, AnnotatedSentence] = {}

    def sentences(self, text: str) -> list[str]:
        """Return the lines of a document, each checked.

        Raises:
            CorpusError: names the line that is no annotated sentence.
        """
        # Not splitlines: U+2028 may stand inside a JSON string.
        self._checked = {}  # of one document at a time
        kept = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not is_blank(line):
                sentence = AnnotatedSentence.from_json(line, f"line {number}")
                _check(sentence, f"line {number}")
                self._checked[line] = sentence
                kept.append(line)
        return kept

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        """Yield each line as the sentence it holds, of the document number it comes with."""
        for document, line in sentences:
            found = self._checked.get(line) or AnnotatedSentence.from_json(line, "sentence")
            yield AnnotatedSentence(
                found.text, found.words, found.pos, found.ner, found.dep, document
            )


def _check(sentence: AnnotatedSentence, where: str) -> None:
    """Refuse what a JSON line can hold and a corpus cannot."""
    if not isinstance(sentence.text, str) or not isinstance(sentence.words, list):
        raise CorpusError(f"{where}: text must be a string and words a list of strings")
    if {*map(type, sentence.words)} - {str} or has_blank(sentence.words):
        raise CorpusError(f"{where}: every word must be a string that is not blank")
    for task in TASKS:
        tags = getattr(sentence, task)
        if tags is None:
            continue
        if not isinstance(tags, list) or not all(isinstance(tag, str | None) for tag in tags):
            raise CorpusError(f"{where}: {task} must be null or a list of strings and nulls")
    if "".join(sentence.words) == sentence.text:
        return
    if locate_words(sentence.text, sentence.words) is None:
        sample = orjson.dumps(sentence.text[:40]).decode("utf-8")
        raise CorpusError(
            f"{where}: its words do not stand in its text ({sample}…) in order with only white "
            "space between them; correct the line or leave out text"
        )
