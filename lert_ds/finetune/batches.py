"""Features to batches of like length, in an order that follows from a seed and a count.

    stream of samples   epoch after epoch, shuffled          7 2 9 0 4 1 3 8 6 5 | 2 4 …
    pool                some steps' worth of it, by length   (2 9 0 7) (4 1 3 8) …
    step                one of these groups, by chance       → micro-batches → processes

A batch is cut to its longest row: of OCNLI, whose rows have 37 tokens in the mean, that leaves a
third of what padding to 128 computes. The batches of a step have one length, so no process waits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lert_ds.data.sampler import shuffled
from lert_ds.finetune.features import UNKNOWN, Feature

POOL_STEPS = 32
"""Steps whose samples are sorted by length together, at most: more would pad less (little less from
here on) and shuffle less."""
LENGTH_MULTIPLE = 8
"""As in `lert_ds.data.loader`: tensor cores want it, and few shapes occur."""


class TaskBatch(NamedTuple):
    """One micro-batch of features; `AnyBatch` in `lert_ds.objective` is its contract."""

    input_ids: Tensor
    """int64 [rows, length]."""
    attention_mask: Tensor | None
    """bool [rows, length], true at real tokens; None where nothing is padded."""
    token_type_ids: Tensor
    """int64 [rows, length]: 1 in the second part."""
    labels: Tensor
    """int64: classes [rows], tags [rows, length], or first and last token [rows, 2]."""
    features: Tensor
    """int64 [rows]: places of the features in their list; below 0 of a row that fills a gap."""

    def to(self, device: torch.device) -> "TaskBatch":
        """Return the batch on `device`."""
        mask = self.attention_mask
        return TaskBatch(
            self.input_ids.to(device, non_blocking=True),
            None if mask is None else mask.to(device, non_blocking=True),
            self.token_type_ids.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.features.to(device, non_blocking=True),
        )


def collate(
    features: Sequence[Feature],
    numbers: Sequence[int],
    pad_id: int,
    *,
    multiple: int = LENGTH_MULTIPLE,
) -> TaskBatch:
    """Return features as a batch, padded to the longest of them and to a multiple of `multiple`.

    Rows of one length are not padded at all: attention without a mask takes its fastest kernel.
    """
    chosen = [features[number] for number in numbers]
    lengths = np.array([len(feature.input_ids) for feature in chosen])
    longest = int(lengths.max())
    if (lengths != longest).any():
        longest = -(-longest // multiple) * multiple
    places = np.arange(longest)
    real = places < lengths[:, None]
    seconds = np.array([feature.second for feature in chosen])
    ids = np.full((len(chosen), longest), pad_id, dtype=np.int64)
    for row, feature in zip(ids, chosen, strict=True):
        row[: len(feature.input_ids)] = feature.input_ids
    return TaskBatch(
        torch.from_numpy(ids),
        None if real.all() else torch.from_numpy(real),
        torch.from_numpy((real & (places >= seconds[:, None])).astype(np.int64)),
        _labels(chosen, longest),
        torch.tensor(list(numbers), dtype=torch.int64),
    )


def _labels(features: Sequence[Feature], length: int) -> Tensor:
    if not isinstance(features[0].labels, np.ndarray):
        return torch.tensor([feature.labels for feature in features], dtype=torch.int64)
    rows = np.full((len(features), length), UNKNOWN, dtype=np.int64)
    for row, feature in zip(rows, features, strict=True):
        row[: len(feature.labels)] = feature.labels
    return torch.from_numpy(rows)


@dataclass(frozen=True)
class LikeLengths:
    """The order of a training: the features of each step, of like length."""

    lengths: NDArray[np.int64]
    """Tokens of each feature."""
    batch_size: int
    """Features a step, over all processes."""
    seed: int

    @property
    def pool_steps(self) -> int:
        """Steps of a pool: no more than an epoch has.

        The copies of a feature from several epochs have one length, and so would share a step: with
        40 features of different lengths and 8 a step, 6 of the 8 were one and the same.
        """
        return max(1, min(POOL_STEPS, len(self.lengths) // self.batch_size))

    def of_step(self, step: int) -> NDArray[np.int64]:
        """Return the features of a step, int64 [batch_size], from 0 on."""
        pool, place = divmod(step, self.pool_steps)
        size = self.pool_steps * self.batch_size
        stream = np.arange(pool * size, (pool + 1) * size)
        indices = shuffled(stream, len(self.lengths), self.seed).indices
        by_length = indices[np.argsort(self.lengths[indices], kind="stable")]
        generator = np.random.default_rng((self.seed, pool))
        group = int(generator.permutation(self.pool_steps)[place])
        found = by_length[group * self.batch_size : (group + 1) * self.batch_size]
        mixed: NDArray[np.int64] = generator.permutation(found)
        return mixed


def training_batches(
    features: Sequence[Feature],
    order: LikeLengths,
    micro_batch_size: int,
    pad_id: int,
    *,
    start: int,
    rank: int,
    world_size: int,
) -> Iterator[tuple[int, TaskBatch]]:
    """Yield (number, micro-batch) of one process without end.

    Args:
        features: What to train on.
        order: Which of them a step takes.
        micro_batch_size: Features that a process takes at a time; divides its share of a step.
        pad_id: Of [PAD].
        start: Samples consumed so far: the first step is the one that follows them.
        rank: This process.
        world_size: Of so many.
    """
    in_step = order.batch_size // micro_batch_size
    step = start // order.batch_size
    while True:
        chosen = order.of_step(step)
        for place in range(rank, in_step, world_size):
            part = chosen[place * micro_batch_size : (place + 1) * micro_batch_size]
            yield step * in_step + place, collate(features, part.tolist(), pad_id)
        step += 1


def evaluation_batches(
    features: Sequence[Feature],
    batch_size: int,
    pad_id: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[TaskBatch]:
    """Yield one process's share of the features, each once, the longest first.

    Every process yields as many batches; where its share has run out, one row that fills the gap.
    """
    by_length = sorted(range(len(features)), key=lambda n: -len(features[n].input_ids))
    parts = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    for turn in range(-(-len(parts) // world_size)):
        place = turn * world_size + rank
        if place < len(parts):
            yield collate(features, parts[place], pad_id)
        else:
            yield _filler(features, pad_id)


def _filler(features: Sequence[Feature], pad_id: int) -> TaskBatch:
    shortest = min(range(len(features)), key=lambda number: len(features[number].input_ids))
    batch = collate(features, [shortest], pad_id)
    return batch._replace(
        labels=torch.full_like(batch.labels, UNKNOWN), features=torch.tensor([-1])
    )
