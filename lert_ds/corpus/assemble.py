"""Annotated sentences of a task to the shards of the training and of the held-out corpus."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lert_ds.corpus.align import Aligner
from lert_ds.corpus.encode import Encoder
from lert_ds.corpus.lines import Split
from lert_ds.corpus.pack import Packer
from lert_ds.corpus.read import share_of
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.sources import open_bytes
from lert_ds.corpus.vocabulary import VOCABULARY_FILE, Vocabulary, load_tokenizer
from lert_ds.corpus.work import Work
from lert_ds.data.shards import HELD_OUT
from lert_ds.files import sha256_of, write_whole

TRAIN = "train"
SIDES = (TRAIN, HELD_OUT)
_BATCH_CHARACTERS = 50_000  # sentences aligned at once: 10 MB of arrays


def assemble(work: Work, task: int) -> None:
    """Align and pack a task's annotated sentences into shards."""
    started = time.monotonic()
    vocabulary, encoder = _encoder(work.tokenizer, sha256_of(work.tokenizer / VOCABULARY_FILE))
    threshold = work.read("divide.json")["threshold"]
    folders = {TRAIN: work.corpus, HELD_OUT: work.corpus / HELD_OUT}
    sides = {name: _Side(work, task, folders[name], vocabulary, encoder) for name in SIDES}
    for sentence in read_annotated(work.annotated(task)):
        sides[HELD_OUT if share_of(sentence.doc) < threshold else TRAIN].add(sentence)
    record = {name: side.finish() for name, side in sides.items()}
    arrays = {f"{name}.{key}": a for name, side in sides.items() for key, a in side.arrays()}
    (work.root / "packed").mkdir(exist_ok=True)
    path = work.root / "packed" / f"{task:05d}.npz"
    write_whole(path, lambda file: np.savez_compressed(file, **arrays))
    work.record("packed", task, {**record, "seconds": time.monotonic() - started})


@functools.lru_cache(1)
def _encoder(folder: Path, _: str) -> tuple[Vocabulary, Encoder]:
    """Return the tokenizer, made once a process: filling its table takes a quarter second."""
    vocabulary = load_tokenizer(str(folder))
    return vocabulary, Encoder(vocabulary.tokenizer)


def read_annotated(path: Path) -> Iterator[AnnotatedSentence]:
    """Yield the annotated sentences of a task."""
    split = Split(str(path), "annotated", "zst", 0, -1, 0)
    with open_bytes(split, bounded=False) as file:  # our own, of whatever was let in
        for number, line in enumerate(file, start=1):
            yield AnnotatedSentence.from_json(line, f"{path}:{number}")


class _Side:
    """The training or the held-out part of a task, on its way into shards."""

    def __init__(
        self, work: Work, task: int, folder: Path, vocabulary: Vocabulary, encoder: Encoder
    ) -> None:
        self.totals = {"documents": 0, "sentences": 0, "characters": 0}
        self._aligner = Aligner(encoder, work.tag_sets)
        self._packer = Packer(
            folder,
            f"{task:05d}",
            work.config.max_length,
            vocabulary.special_ids,
            vocabulary.size,
            {name: len(tags) for name, tags in work.tag_sets.items()},
        )
        self._batch: list[AnnotatedSentence] = []
        self._characters = 0
        self._present = -1  # document that the packer is in

    def add(self, sentence: AnnotatedSentence) -> None:
        self._batch.append(sentence)
        self._characters += len(sentence.text)
        if self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        batch = self._batch
        if not batch:
            return
        tokens, ends = self._aligner.align(batch)
        first, start = 0, 0
        for last, sentence in enumerate(batch, start=1):
            if last < len(batch) and batch[last].doc == sentence.doc:
                continue
            if sentence.doc != self._present:
                self._present = sentence.doc
                self._packer.start_document()
                self.totals["documents"] += 1
            self._packer.add(tokens.part(start, int(ends[last - 1])))
            first, start = last, int(ends[last - 1])
        assert first == len(batch)
        self.totals["sentences"] += len(batch)
        self.totals["characters"] += self._characters
        self._batch, self._characters = [], 0

    def finish(self) -> dict[str, Any]:
        self._flush()
        self._packer.finish()
        records = self._packer.records
        return {
            "shards": records,
            "counts": self._aligner.counts + self._packer.counts,
            "totals": {
                **self.totals,
                "words": self._packer.words,
                "instances": sum(record["instances"] for record in records),
            },
        }

    def arrays(self) -> list[tuple[str, Any]]:
        return [("tokens", self._packer.token_counts), *self._packer.class_counts.items()]
