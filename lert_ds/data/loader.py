"""A corpus to the batches of a training or an evaluation.

    number of a micro-batch
      ─sampler→ Samples ─shards→ Rows ─masking→ MaskedRows ─assemble→ Batch

Only the number goes to a worker process, and it decides everything, so the stream is the same for
any number of workers. In a phase of shorter rows an instance is cut before it is masked (rows.py).
Places to predict are indices into the flattened batch:

    two rows of 512, the longer of which has 98 tokens: both are cut to 104
    masked places 3 in the first row, 1 and 2 in the second: masked_positions = [3, 105, 106]
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from lert_ds.data.masking import MaskedRows, MaskingConfig, VocabularyFacts
from lert_ds.data.native_masking import mask_rows
from lert_ds.data.rows import AS_THE_CORPUS, RowLengths, cut, masking_of_rows
from lert_ds.data.sampler import MicroBatches, Samples, in_order
from lert_ds.data.shards import Array, Corpus, Rows
from lert_ds.errors import CorpusError, UserError
from lert_ds.objective import Batch
from lert_ds.termination import STOP_SIGNALS

EVALUATION_SEED = 20221110
"""Masks of every evaluation, so that held-out losses compare between steps and runs."""

LENGTH_MULTIPLE = 8
"""Batches are cut to a multiple of this: tensor cores want it, and few shapes occur."""

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent ends."""

PREFETCHED_BATCHES = 4
"""Batches that each worker prepares ahead."""


@dataclass(frozen=True)
class Batching:
    """How instances become a batch, beyond the masks."""

    keep_padding: bool = False
    """Do not cut batches to their longest instance, so that they have one shape."""
    part_documents: bool = False
    """Say where the documents of an instance end, so that they need not see each other."""


AS_IT_COMES = Batching()


@dataclass(frozen=True)
class Collator:
    """Instances of a corpus to masked batches."""

    corpus: Corpus
    masking: MaskingConfig
    vocabulary: VocabularyFacts
    seed: int
    with_missing: bool = False
    """Also predict words that a pruned vocabulary has no piece for: their label is [UNK]."""
    batching: Batching = AS_IT_COMES

    def collate(self, samples: Samples, length: int | None = None) -> Batch:
        """Return the instances of `samples`, masked.

        With a `length` they are cut to rows of so many tokens, and none of the padding is: batches
        of as many instances then have one shape.
        """
        of_instance = self.corpus.length
        rows = cut(self.corpus.rows(samples.indices), length or of_instance, self.vocabulary)
        masking = masking_of_rows(self.masking, length or of_instance, of_instance)
        masked = mask_rows(rows, samples, self.seed, masking, self.vocabulary)
        return self._assemble(rows, self._known(rows, masked), length)

    def collate_unmasked(self, length: int | None = None) -> Batch:
        """Return a batch of one instance with nothing to predict: it counts nowhere."""
        first = self.corpus.rows(np.zeros(1, dtype=np.int64))
        rows = cut(first, length or self.corpus.length, self.vocabulary)
        nothing = np.zeros(0, dtype=np.int64)
        masked = MaskedRows(rows.input_ids.astype(np.int64), nothing)
        return self._assemble(rows, masked, length)

    def _assemble(self, rows: Rows, masked: MaskedRows, length: int | None) -> Batch:
        keep = self.batching.keep_padding or length is not None
        batch = assemble(rows, masked, self.vocabulary.pad_id, cut_padding=not keep)
        if not self.batching.part_documents:
            return batch
        ends = document_ends(batch.input_ids.numpy(), self.vocabulary.special_ids["sep"])
        return batch._replace(document_ends=torch.from_numpy(ends))

    def _known(self, rows: Rows, masked: MaskedRows) -> MaskedRows:
        if not self.corpus.is_renumbered or self.with_missing:
            return masked
        # To learn [UNK] would be to learn to say nothing.
        labels = rows.input_ids.reshape(-1)[masked.positions]
        known = labels != self.vocabulary.special_ids["unk"]
        return masked._replace(positions=masked.positions[known])


def assemble(rows: Rows, masked: MaskedRows, pad_id: int, *, cut_padding: bool = True) -> Batch:
    """Return masked rows as one batch, cut to the longest unless told otherwise.

    Padding ends every row, so cutting it changes no token; the length is a multiple of 8 or that of
    the corpus.
    """
    whole = rows.input_ids.shape[1]
    real = rows.input_ids != pad_id
    places = np.flatnonzero(real.any(axis=0))
    longest = int(places[-1]) + 1 if len(places) else 1
    length = min(whole, -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE) if cut_padding else whole
    real = real[:, :length]
    positions = masked.positions - masked.positions // whole * (whole - length)
    return Batch(
        input_ids=torch.from_numpy(np.ascontiguousarray(masked.input_ids[:, :length])),
        attention_mask=None if real.all() else torch.from_numpy(real.copy()),
        masked_positions=torch.from_numpy(positions),
        labels=_at(rows.input_ids, masked.positions),
        tags={task: _at(classes, masked.positions) for task, classes in rows.tags.items()},
    )


def document_ends(input_ids: npt.NDArray[np.int64], separator: int) -> npt.NDArray[np.int32]:
    """Return where documents end, int32 [documents], the last repeated up to a power of two.

    [CLS] a b [SEP] c [SEP] [PAD] [PAD], twice → 4 6 8 12 14 16 16 16

    Args:
        input_ids: int64 [instances, length]; a document ends in `separator`.
        separator: Id of [SEP], which stands nowhere else.
    """
    flat, length = input_ids.reshape(-1), input_ids.shape[1]
    is_end = flat == separator
    is_end[length - 1 :: length] = True
    ends = (np.flatnonzero(is_end) + 1).astype(np.int32)
    size = 1 << max(len(ends) - 1, 1).bit_length()
    return np.concatenate([ends, np.full(size - len(ends), len(flat), dtype=np.int32)])


def _at(values: Array, positions: npt.NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(values.reshape(-1)[positions].astype(np.int64))


class _TrainingSet(Dataset[Any]):
    """Micro-batch number to (number, batch)."""

    def __init__(
        self, collator: Collator, micro_batches: MicroBatches, lengths: RowLengths
    ) -> None:
        self.collator = collator
        self.micro_batches = micro_batches
        self.lengths = lengths

    def __getitem__(self, number: int) -> tuple[int, Batch] | UserError:
        length = self.lengths.at(self.micro_batches.first_sample(number))
        try:
            return number, self.collator.collate(self.micro_batches.samples(number), length)
        except UserError as error:  # raised again by `_load`, without a worker's traceback
            return error


class _EvaluationSet(Dataset[Any]):
    """Place in the list of `ranges` to the batch of its instances."""

    def __init__(self, collator: Collator, ranges: Sequence[range], length: int | None) -> None:
        self.collator = collator
        self.ranges = ranges
        self.length = length

    def __getitem__(self, number: int) -> Batch | UserError:
        indices = np.array(self.ranges[number], dtype=np.int64)
        try:
            if not len(indices):
                return self.collator.collate_unmasked(self.length)
            return self.collator.collate(Samples(np.zeros_like(indices), indices), self.length)
        except UserError as error:
            return error


@dataclass(frozen=True)
class _Numbers:
    """What a DataLoader takes for a sampler: the numbers of this rank's micro-batches."""

    micro_batches: MicroBatches

    def __iter__(self) -> Iterator[int]:
        return self.micro_batches.numbers()


def training_batches(
    corpus: Corpus,
    masking: MaskingConfig,
    micro_batches: MicroBatches,
    *,
    lengths: RowLengths = AS_THE_CORPUS,
    batching: Batching = AS_IT_COMES,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[int, Batch]]:
    """Yield (micro-batch number, batch) of one rank without end.

    Args:
        corpus: what to train on.
        masking: which tokens to predict; drawn anew each epoch from the seed of `micro_batches`.
        micro_batches: which instances, from where on, for which rank.
        lengths: of the rows that instances are used as.
        batching: what else a batch holds.
        workers: processes that prepare batches ahead; 0 prepares them here.
        pin_memory: hand out page-locked tensors, which a GPU fetches while it computes.

    Raises:
        CorpusError: the corpus is empty or damaged.
    """
    assert micro_batches.corpus_size == len(corpus)
    collator = _collator(corpus, masking, micro_batches.seed, batching=batching)
    dataset = _TrainingSet(collator, micro_batches, lengths)
    items = _load(dataset, _Numbers(micro_batches), workers, pin_memory)
    return ((int(number), cast(Batch, batch)) for number, batch in items)


def evaluation_batches(
    corpus: Corpus,
    masking: MaskingConfig,
    micro_batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    length: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    with_missing: bool = False,
    batching: Batching = AS_IT_COMES,
) -> Iterator[Batch]:
    """Yield one rank's share of a corpus, each instance once, in order, with the same masks always.

    With a `length` instances are used as rows of so many tokens. With `with_missing` words that a
    pruned vocabulary lacks are among the labels, as [UNK].

    Every rank yields as many batches; where its share has run out they have one row and nothing to
    predict, so sums over masked positions count each instance once for any number of ranks.

    Raises:
        CorpusError: the corpus is empty or damaged.
    """
    collator = _collator(corpus, masking, EVALUATION_SEED, with_missing, batching)
    ranges = in_order(len(corpus), micro_batch_size, rank, world_size)
    dataset = _EvaluationSet(collator, ranges, length)
    items = _load(dataset, range(len(ranges)), workers, pin_memory)
    return (cast(Batch, item) for item in items)


def _collator(
    corpus: Corpus,
    masking: MaskingConfig,
    seed: int,
    with_missing: bool = False,
    batching: Batching = AS_IT_COMES,
) -> Collator:
    if not len(corpus):
        raise CorpusError(f"{corpus.folders[0]}: this corpus has no instance; prepare more text")
    vocabulary = VocabularyFacts.of(corpus.manifest)
    return Collator(corpus, masking, vocabulary, seed, with_missing, batching)


def _load(
    dataset: Dataset[Any], numbers: Iterable[int], workers: int, pin_memory: bool
) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        # A generator of its own: else starting an iterator would draw from the global one, and a
        # resumed run would see other dropout than one that was not interrupted.
        generator=torch.Generator(),
    )
    # Workers are born with these signals blocked: one that comes early would end them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for item in items:
        if isinstance(item, UserError):
            raise item
        yield item


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_worker: int) -> None:
    """Leave signals to the process that trains: it saves first, and its workers go with it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Whatever kills that process: torch's own workers look now and then, and one that stood still
    # lived on for minutes.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:  # it died before that
        os._exit(1)
