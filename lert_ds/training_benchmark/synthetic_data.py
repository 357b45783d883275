"""Random instances of the shape of a corpus, for a benchmark where there is no corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lert_ds import distributed
from lert_ds.data.masking import MaskingConfig
from lert_ds.labels import IGNORE_INDEX
from lert_ds.objective import Batch
from lert_ds.train.trainer import Data, TrainConfig
from lert_ds.training_data import DataFacts

FIRST_ID = 200
"""Ids below are mostly special or unused in Chinese BERT's vocabulary."""
UNKNOWN_TAG_SHARE = 0.1
DOCUMENTS = 4
"""Of an instance: paragraphs of 128 tokens in 512."""
SAMPLES = 8
"""Micro-batches that are drawn; they take turns."""


@dataclass(frozen=True)
class SyntheticData:
    """Full instances of random ids with random labels.

    What a step costs does not depend on the ids: every instance is full and has its whole budget of
    masked tokens, as packed text has. Losses mean nothing.
    """

    facts: DataFacts
    masking: MaskingConfig
    parts_documents: bool = False
    """Whether an instance is of several documents, which do not see each other."""

    def batches(self, train: TrainConfig, seed: int, micro_batch_size: int) -> Data:
        """Return this process's batches, the same ones over and over."""

        def training(step: int, _samples: int) -> Iterator[tuple[int, Batch]]:
            rank, world_size = distributed.rank(), distributed.world_size()
            length = train.length_at(step) or self.facts.length
            instances = micro_batch_size * (self.facts.length // length)
            drawn = [
                self.batch(instances, length, seed + rank + world_size * place)
                for place in range(SAMPLES)
            ]
            number = rank
            while True:
                yield number, drawn[number // world_size % SAMPLES]
                number += world_size

        return Data(training, None)

    def batch(self, instances: int, length: int, seed: int) -> Batch:
        """Return random instances, each full and masked as its budget says."""
        generator = torch.Generator().manual_seed(seed)

        def draw(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator)

        masked = self.masking.budget(length - 2, length)
        positions = torch.stack(
            [
                1 + torch.randperm(length - 2, generator=generator)[:masked].sort().values
                for _ in range(instances)
            ]
        )
        positions += torch.arange(instances)[:, None] * length
        labels = draw(FIRST_ID, self.facts.vocabulary_size, instances * masked)
        ids = draw(FIRST_ID, self.facts.vocabulary_size, instances, length)
        tags = {}
        for task, names in self.facts.tag_sets.items():
            known = draw(0, len(names), instances * masked)
            unknown = torch.rand(instances * masked, generator=generator) < UNKNOWN_TAG_SHARE
            tags[task] = known.masked_fill(unknown, IGNORE_INDEX)
        ends = None
        if self.parts_documents:
            size = max(1, length // DOCUMENTS)
            ends = torch.arange(size, instances * length + 1, size, dtype=torch.int32)
        kept = {task: _pinned(classes) for task, classes in tags.items()}
        flat = positions.flatten()
        return Batch(_pinned(ids), None, _pinned(flat), _pinned(labels), kept, _pinned(ends))


def _pinned(tensor: Any) -> Any:
    """Return a tensor in page-locked memory where there is a GPU, as a corpus's loader does."""
    return tensor.pin_memory() if tensor is not None and torch.cuda.is_available() else tensor
