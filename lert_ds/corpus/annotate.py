"""What an annotator is, the table of those there are, and what holds for all of them.

config = AnnotatorConfig(kind="jieba")
annotator = make_annotator(config, resolve_tag_sets(config, texts))
for sentence in annotator.annotate((0, text) for text in annotator.sentences(document)): …
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, model_validator

from lert_ds.config import Config
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.errors import CorpusError
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS, TASKS, TagSets


class Annotator(Protocol):
    """Cuts documents into sentences and words, and tags the words."""

    tag_sets: TagSets
    """The tags it may give, for every task. For a task that it does not offer the list may be
    empty, or kept so that text with tags of that task can join the corpus."""
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


class AnnotatorConfig(Config):
    """Which annotator, and how it works."""

    kind: Literal["jieba", "ltp", "conllu", "precomputed"] = "jieba"
    """jieba (embedded, approximate), ltp (the paper's tool), conllu (any parser's output),
    precomputed (JSON lines of annotated sentences)."""
    model: str | None = None
    """ltp: a local folder or a hub name, LTP/base say."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """ltp: auto (a GPU when there is one), cpu, cuda or cuda:N."""
    tokens_per_batch: Annotated[int, Field(ge=64)] | None = None
    """ltp: tokens of a batch, padding included; by default 16,384 on a GPU and 1,024 on a CPU;
    halved by itself when memory runs out."""
    user_dictionary: Path | None = None
    """jieba: a file of additional words, `word [frequency] [flag]` a line."""
    pos_column: Literal["xpos", "upos"] = "xpos"
    """conllu: the column of the part of speech."""
    strip_subtypes: bool = False
    """conllu: nsubj:pass becomes nsubj."""
    tag_sets: Literal["ltp", "collect"] | dict[str, list[str]] = "ltp"
    """The corpus's tags: LTP's, those found in a first pass over the input (conllu, precomputed),
    or lists by task."""
    longest_sentence: Annotated[int, Field(ge=16, le=100_000)] = 510
    """jieba, ltp: characters; a longer sentence is split at its best marks."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "ltp" and not self.model:
            raise ValueError("kind = 'ltp' needs model: a folder or a hub name such as LTP/base")
        if self.kind == "ltp" and self.longest_sentence > 510:
            raise ValueError(
                f"longest_sentence = {self.longest_sentence}: LTP takes 510 characters at most"
            )
        for key, owner in (("model", "ltp"), ("user_dictionary", "jieba")):
            if getattr(self, key) is not None and self.kind != owner:
                raise ValueError(
                    f"{key} = {str(getattr(self, key))!r} is for kind = '{owner}', "
                    f"not '{self.kind}': remove it"
                )
        if self.tag_sets == "collect" and self.kind not in ("conllu", "precomputed"):
            raise ValueError(
                f"tag_sets = 'collect' is for annotated input, kind = '{self.kind}' annotates "
                "itself: use 'ltp' or lists by task"
            )
        if isinstance(self.tag_sets, dict):
            _check_tag_sets(self.tag_sets)
        return self


def _check_tag_sets(tag_sets: Mapping[str, list[str]]) -> None:
    if set(tag_sets) != set(TASKS):
        raise ValueError(
            f"tag_sets has {', '.join(sorted(tag_sets)) or 'no task'}: give a list each of "
            f"{', '.join(TASKS)}, empty for a task that the text lacks"
        )
    for task, tags in tag_sets.items():
        doubles = sorted(tag for tag, count in Counter(tags).items() if count > 1)
        if doubles:
            raise ValueError(f"tag_sets.{task} names {doubles[0]!r} twice: name each tag once")
        if len(tags) > IGNORE_INDEX:
            raise ValueError(f"tag_sets.{task} has {len(tags)} tags: {IGNORE_INDEX} at most fit")


def _jieba(config: AnnotatorConfig, tag_sets: TagSets) -> Annotator:
    from lert_ds.corpus.annotators.jieba_annotator import JiebaAnnotator

    return JiebaAnnotator(tag_sets, config.longest_sentence, config.user_dictionary)


def _ltp(config: AnnotatorConfig, tag_sets: TagSets) -> Annotator:
    from lert_ds.corpus.annotators.ltp_annotator import LtpAnnotator

    assert config.model is not None
    return LtpAnnotator(
        config.model,
        tag_sets,
        device=config.device,
        tokens_per_batch=config.tokens_per_batch,
        longest_sentence=config.longest_sentence,
    )


def _conllu(config: AnnotatorConfig, tag_sets: TagSets) -> Annotator:
    from lert_ds.corpus.annotators.conllu import ConlluAnnotator

    return ConlluAnnotator(tag_sets, config.pos_column, config.strip_subtypes)


def _precomputed(config: AnnotatorConfig, tag_sets: TagSets) -> Annotator:
    from lert_ds.corpus.annotators.precomputed import PrecomputedAnnotator

    return PrecomputedAnnotator(tag_sets)


ANNOTATORS: Mapping[str, Callable[[AnnotatorConfig, TagSets], Annotator]] = {
    "jieba": _jieba,
    "ltp": _ltp,
    "conllu": _conllu,
    "precomputed": _precomputed,
}
"""Name to what makes the annotator; each imports its library only when called."""


def make_annotator(config: AnnotatorConfig, tag_sets: TagSets) -> Annotator:
    """Return the annotator of `config.kind`; of the tags only those in `tag_sets` come out.

    Raises:
        UserError: a model, dictionary or package is missing.
    """
    return _KnownTags(ANNOTATORS[config.kind](config, tag_sets), tag_sets)


def resolve_tag_sets(config: AnnotatorConfig, texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the tags of every task; only `tag_sets = "collect"` reads `texts`, the documents."""
    if config.tag_sets == "collect":
        return collect_tag_sets(config, texts)
    named = LTP_TAGS if config.tag_sets == "ltp" else config.tag_sets
    return {task: list(named[task]) for task in TASKS}


def collect_tag_sets(config: AnnotatorConfig, texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the tags of every task in annotated documents, the commonest first, ties by name.

    Raises:
        CorpusError: the text is malformed, or a task has more tags than a corpus can hold.
    """
    return rank_tags(config, count_tags(config, texts))


def count_tags(config: AnnotatorConfig, texts: Iterable[str]) -> dict[str, Counter[str]]:
    """Return how often each tag of every task stands in annotated documents.

    Raises:
        CorpusError: the text is malformed.
    """
    annotator = ANNOTATORS[config.kind](config, {})
    found: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    for text in texts:
        for sentence in annotator.annotate((0, item) for item in annotator.sentences(text)):
            for task in TASKS:
                found[task].update(tag for tag in getattr(sentence, task) or () if tag is not None)
    return found


def rank_tags(config: AnnotatorConfig, found: Mapping[str, Counter[str]]) -> dict[str, list[str]]:
    """Return the counted tags of every task, the commonest first, ties by name.

    Raises:
        CorpusError: a task has more tags than a corpus can hold.
    """
    for task, tags in found.items():
        if len(tags) > IGNORE_INDEX:
            raise CorpusError(
                f"{config.kind}: {len(tags)} different {task} tags, {IGNORE_INDEX} at most fit; "
                "is it the right column? List the tags to keep in tag_sets"
            )
    return {task: sorted(tags, key=_commonest_first(tags)) for task, tags in found.items()}


def _commonest_first(counts: Counter[str]) -> Callable[[str], tuple[int, str]]:
    return lambda tag: (-counts[tag], tag)


class _KnownTags:
    """An annotator whose tags outside the lists become None and are counted."""

    def __init__(self, annotator: Annotator, tag_sets: TagSets) -> None:
        self.tag_sets = tag_sets
        self.counts = annotator.counts
        self._annotator = annotator
        self._known: dict[str, frozenset[str | None]] = {
            task: frozenset([*tag_sets[task], None]) for task in TASKS
        }

    def sentences(self, text: str) -> list[str]:
        return self._annotator.sentences(text)

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        for sentence in self._annotator.annotate(sentences):
            changes: dict[str, Any] = {}
            for task, known in self._known.items():
                tags: list[str | None] | None = getattr(sentence, task)
                if tags is None:
                    continue
                assert len(tags) == len(sentence.words), (task, sentence)
                if not known.issuperset(tags):
                    changes[task] = [tag if tag in known else None for tag in tags]
                    self.counts[f"{task} tag outside the list"] += sum(
                        tag not in known for tag in tags
                    )
            yield dataclasses.replace(sentence, **changes) if changes else sentence
