"""Batches whose masks come round again, each with what its teachers said of it before.

    epoch        0    1    2    3        teacher_cache_masks = 2
    its masks    0    1    0    1        epochs 2 and 3 are epochs 0 and 1, in another order
    teachers     asked     read

Masks are a pure function of seed, epoch and instance (`lert_ds.data.masking`): here of the epoch
modulo the number of masks. The order of the instances stays that of the epoch itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor

from distill.answers import Answer
from distill.teacher_cache import Rows, TeacherCache
from lert_ds.corpora import Corpora
from lert_ds.data.sampler import MicroBatches, Samples
from lert_ds.objective import Batch
from lert_ds.train.trainer import Data, TrainConfig


class TaughtBatch(NamedTuple):
    """A batch, which instances it holds, and what is known of it; an `AnyBatch`."""

    batch: Batch
    """What the student sees."""
    rows: Rows
    """Of the corpus; on the host."""
    answers: tuple[Answer, ...]
    """Of each teacher; none where it has to be asked."""

    @property
    def input_ids(self) -> Tensor:
        """int64 [instances, length]: token ids."""
        return self.batch.input_ids

    @property
    def attention_mask(self) -> Tensor | None:
        """Bool [instances, length], true at real tokens; None where nothing is padded."""
        return self.batch.attention_mask

    @property
    def token_type_ids(self) -> None:
        """None: an instance is one text."""
        return

    def to(self, device: torch.device) -> Self:
        """Return the batch on `device`."""
        answers = tuple(answer.to(device) for answer in self.answers)
        return self._replace(batch=self.batch.to(device), answers=answers)


@dataclass(frozen=True)
class _Repeating(MicroBatches):
    """Micro-batches whose samples name the masks in the place of the epoch."""

    masks: int = 1

    def samples(self, number: int) -> Samples:
        """Return what micro-batch `number` holds, masked as its epoch modulo `masks` was."""
        samples = super().samples(number)
        return samples._replace(epochs=samples.epochs % self.masks)

    def epoch(self, number: int) -> int:
        """Return the epoch that micro-batch `number` begins in."""
        return self.first_sample(number) // self.corpus_size


@dataclass(frozen=True)
class RepeatingCorpora(Corpora):
    """Corpora whose masks come round again."""

    masks: int = 1
    """Epochs until they do."""
    cache: TeacherCache | None = None
    """What the teachers said; None where they are not asked in training."""

    def micro_batches(
        self, train: TrainConfig, seed: int, micro_batch_size: int, samples: int
    ) -> _Repeating:
        """Return which instances this process takes, and with which masks."""
        found = super().micro_batches(train, seed, micro_batch_size, samples)
        return _Repeating(**vars(found), masks=self.masks)

    def batches(self, train: TrainConfig, seed: int, micro_batch_size: int) -> Data:
        """Return this process's batches of a run, with what its teachers said of them."""
        found, cache = super().batches(train, seed, micro_batch_size), self.cache
        if cache is None:
            return found

        def training(step: int, samples: int) -> Iterator[tuple[int, Any]]:
            micro_batches = self.micro_batches(train, seed, micro_batch_size, samples)
            batches = cast(Iterator[tuple[int, Batch]], found.training(step, samples))
            return self._taught(batches, micro_batches, cache)

        return found._replace(training=training)

    def _taught(
        self,
        batches: Iterator[tuple[int, Batch]],
        micro_batches: _Repeating,
        cache: TeacherCache,
    ) -> Iterator[tuple[int, TaughtBatch]]:
        epoch = -1
        for number, batch in batches:
            if (now := micro_batches.epoch(number)) != epoch:
                cache.write()  # so that whoever meets these instances next finds their answers
                cache.refresh()
                epoch = now
            samples = micro_batches.samples(number)
            rows = Rows(samples.epochs, samples.indices)
            assert len(rows.indices) == len(batch.input_ids)
            found: tuple[Answer, ...] = ()
            if cache.has(rows).all():
                found = tuple(cache.read(rows, batch.input_ids.shape[1]))
            yield number, TaughtBatch(batch, rows, found)


def counts_of(batch: Batch) -> tuple[Any, Any]:
    """Return the masked positions and the real tokens of each instance of a batch, on the host.

    Returns:
        Two arrays, int64 [instances].
    """
    instances, length = batch.input_ids.shape
    places = (batch.masked_positions // length).cpu().numpy()
    masked = np.bincount(places, minlength=instances)
    if batch.attention_mask is None:
        tokens = np.full(instances, length, dtype=np.int64)
    else:
        tokens = cast(Any, batch.attention_mask.sum(1).cpu().numpy())
    return masked, tokens
