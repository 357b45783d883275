"""What a task of each stage does: documents of its split in, files of the work folder out.

    count_pieces → learn                     tokenizer = "train"
    count_tags → rank                        annotator.tag_sets = "collect"
    sign → compare                           deduplicate = "exact"
    annotate → divide → (assemble → finish)  always

A stage reads what the stages before it have written, whole files each, and knows nothing of who
runs it. Nothing here knows datatrove; `build` makes the stages of its executors from it.
"""

import functools
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import zstandard

from lert_ds.corpus import annotate as annotators
from lert_ds.corpus.annotate import Annotator, AnnotatorConfig, make_annotator
from lert_ds.corpus.deduplicate import compare, content_of, dropped, sign
from lert_ds.corpus.lines import Split, place_of
from lert_ds.corpus.plan import read_options
from lert_ds.corpus.read import Document, number_of, read_documents, share_of
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.vocabulary import count_pieces, learn_vocabulary, save_tokenizer
from lert_ds.corpus.work import Work, total
from lert_ds.errors import CorpusError
from lert_ds.files import write_whole
from lert_ds.labels import TASKS

_BYTES_A_CHARACTER = 3  # of Chinese text
_COMPRESSION = 3  # of text by gzip and zstd, about
_AT_LINE = re.compile(r"line (\d+): ")


class Item(Protocol):
    """A document as it goes through the steps: datatrove's `Document`."""

    text: str
    metadata: dict[str, Any]


@dataclass
class Tally:
    """What the steps of one task count together."""

    counts: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    characters: int = 0
    started: float = 0.0

    def start(self) -> None:
        """Begin a task: the same steps may serve several."""
        self.counts.clear()  # in place: other steps hold it already
        self.documents = self.characters = 0
        self.started = time.monotonic()


def read(work: Work, task: int, tally: Tally, sample: bool) -> Iterator[Document]:
    """Yield the documents of a task, or of a sample of them that vocabularies are learnt from."""
    tally.start()
    share = _sample_share(work) if sample else 1.0
    options = read_options(work.config)
    for document in read_documents(work.plan.splits[task], options, tally.counts):
        # Salted, or the sample would be the held-out documents.
        if share < 1 and share_of(number_of(f"sample {document.number}")) >= share:
            continue
        tally.documents += 1
        tally.characters += len(document.text)
        yield document


def _sample_share(work: Work) -> float:
    size = sum(
        split.bytes * (_COMPRESSION if split.compression else 1) for split in work.plan.splits
    )
    return min(1.0, work.config.vocabulary_characters * _BYTES_A_CHARACTER / max(1, size))


def count_pieces_of(work: Work, task: int, data: Iterable[Item]) -> None:
    """Count the pre-tokens of a task's documents."""
    texts: Iterable[str] = (item.text for item in data)
    if work.config.annotated:  # what was annotated is the text, not its columns
        annotator = annotators.ANNOTATORS[work.config.annotator.kind](work.config.annotator, {})
        sentences = _sentences(annotator, work.plan.splits[task], data)
        texts = (sentence.text for sentence in annotator.annotate(sentences))
    work.record("pieces", task, count_pieces(texts))


def learn(work: Work) -> None:
    """Learn the vocabulary from the counts of all tasks."""
    counts = total(work.records("pieces"))
    if not counts:
        raise no_text(work)
    config = work.config
    vocabulary = learn_vocabulary(
        counts, config.vocabulary_size, config.vocabulary_minimum_frequency
    )
    save_tokenizer(vocabulary, work.tokenizer, config.max_length)


def count_tags(work: Work, task: int, data: Iterable[Item]) -> None:
    """Count the tags of a task's annotated documents."""
    split = work.plan.splits[task]
    texts: list[Item] = []

    def watched() -> Iterator[str]:
        for item in data:
            texts[:] = [item]
            yield item.text

    try:
        found = annotators.count_tags(work.config.annotator, watched())
    except CorpusError as error:
        raise _in_file(error, split, texts[0]) from error
    work.record("tags", task, found)


def rank(work: Work) -> None:
    """Write the tag sets, from the counts of all tasks."""
    found: dict[str, Counter[str]] = {name: Counter() for name in TASKS}
    for record in work.records("tags"):
        for name in TASKS:
            found[name].update(record[name])
    work.write("tag_sets.json", annotators.rank_tags(work.config.annotator, found))


def sign_sentences(work: Work, task: int, data: Iterable[Item]) -> None:
    """Write the signatures of a task's sentences."""
    kind = work.config.annotator.kind
    annotator = _annotator_of(work)
    sentences = _sentences(annotator, work.plan.splits[task], data)
    contents = (content_of(sentence, kind) for _, sentence in sentences)
    work.record("signed", task, sign(contents, work.root / "signatures", task))


def compare_bucket(work: Work, bucket: int) -> None:
    """Find the sentences that repeat earlier ones, in one bucket of their hashes."""
    compare(work.root / "signatures", work.root / "duplicates", bucket, work.plan.buckets)


def annotate(work: Work, task: int, data: Iterable[Item], tally: Tally) -> None:
    """Annotate a task's sentences, those aside that are repeated."""
    annotator = _annotator_of(work)
    sentences = _sentences(annotator, work.plan.splits[task], data)
    if work.config.deduplicate == "exact":
        drop = dropped(work.root / "duplicates", task, work.read(f"signed/{task:05d}.json"))
        sentences = _without(sentences, drop, tally.counts)
    facts: dict[str, Any] = {"documents": 0, "sentences": 0, "characters": 0, "shares": []}
    path = work.annotated(task)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: Any) -> None:
        compressor = zstandard.ZstdCompressor(write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as stream:
            for sentence in _watched(annotator.annotate(sentences), facts):
                stream.write(sentence.to_json() + b"\n")

    write_whole(path, write)
    facts["read"] = {"documents": tally.documents, "characters": tally.characters}
    facts["counts"] = tally.counts + annotator.counts
    facts["seconds"] = time.monotonic() - tally.started
    work.record("annotated", task, facts)


def divide(work: Work) -> None:
    """Decide which documents are held out: those whose share lies below the threshold written."""
    records = list(work.records("annotated"))
    if not any(record["sentences"] for record in records):
        raise no_text(work)
    held_out = work.config.held_out
    shares = [share for record in records for share in record["shares"]]
    low, high = min(shares), max(shares)
    threshold = held_out
    if held_out:
        if low == high:
            documents = sum(record["documents"] for record in records)
            raise CorpusError(
                f"held_out = {held_out}: there is nothing to part, the input has "
                f"{'one document' if documents == 1 else 'copies of one document only'}; "
                'give more text, part it by blank lines, say documents="lines" or held_out=0'
            )
        # Few documents may all lie on one side: then the nearest goes to the other.
        threshold = min(max(held_out, float(np.nextafter(low, 1))), high)
    work.write("divide.json", {"threshold": threshold})


def no_text(work: Work) -> CorpusError:
    """Return the error of an input that holds no text."""
    names = ", ".join(map(str, work.config.input))
    dropped_all = " (or the filters dropped all of it)" if work.config.filters else ""
    return CorpusError(f"input = {names}: it holds only blanks{dropped_all}; give text")


def _annotator_of(work: Work) -> Annotator:
    """Return the annotator, as new: loading jieba's dictionary takes a second, LTP's model ten."""
    kind = work.config.annotator.kind
    described = work.config.annotator.model_dump_json(), json.dumps(work.tag_sets)
    annotator = _make_annotator(annotators.ANNOTATORS[kind], *described)
    annotator.counts.clear()
    return annotator


@functools.lru_cache(1)
def _make_annotator(_: Any, config: str, tag_sets: str) -> Annotator:
    """Return the annotator of a configuration, made once a process."""
    return make_annotator(AnnotatorConfig.model_validate_json(config), json.loads(tag_sets))


def _sentences(
    annotator: Annotator, split: Split, data: Iterable[Item]
) -> Iterator[tuple[int, str]]:
    """Yield (document number, sentence) of all documents, without blank ones."""
    for item in data:
        try:
            sentences = annotator.sentences(item.text)
        except CorpusError as error:
            raise _in_file(error, split, item) from error
        for sentence in sentences:
            if sentence and not sentence.isspace():
                yield item.metadata["number"], sentence


def _in_file(error: CorpusError, split: Split, item: Item) -> CorpusError:
    """Return an error that counts lines from a document's first as one that names the file's."""
    match = _AT_LINE.match(str(error))
    if match is None:
        return error
    place = place_of(split, item.metadata["line"] + int(match.group(1)) - 1)
    return CorpusError(f"{place}: {str(error)[match.end() :]}")


def _without(
    sentences: Iterable[tuple[int, str]], drop: Any, counts: Counter[str]
) -> Iterator[tuple[int, str]]:
    for place, sentence in enumerate(sentences):
        if drop[place]:
            counts["sentence dropped: seen before"] += 1
        else:
            yield sentence


def _watched(
    sentences: Iterable[AnnotatedSentence], facts: dict[str, Any]
) -> Iterator[AnnotatedSentence]:
    """Yield the sentences that have words; `facts` takes their counts and range of shares."""
    present = -1
    low, high = 1.0, 0.0
    for sentence in sentences:
        if not sentence.words:
            continue
        if sentence.doc != present:
            present = sentence.doc
            facts["documents"] += 1
            share = share_of(present)
            low, high = min(low, share), max(high, share)
        facts["sentences"] += 1
        facts["characters"] += len(sentence.text)
        facts["shares"] = [low, high]
        yield sentence
