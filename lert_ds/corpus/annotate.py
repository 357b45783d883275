"""What an annotator is, and the table of those there are."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.labels import TagSets


class Annotator(Protocol):
    """Cuts documents into sentences and words, and tags the words."""

    tag_sets: TagSets
    """The tags it can give, for every task; an empty list for a task that it does not offer."""
    counts: Counter[str]
    """What it ignored, by reason; grows as it works."""

    def sentences(self, text: str) -> list[str]:
        """Return the sentences of a document's text, none longer than the annotator takes.

        For plain text they join back to the text; white space at their ends is allowed.
        """
        ...

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        """Yield each (document number, sentence) annotated, in order; reads ahead as it likes."""
        ...
