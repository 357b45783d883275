"""What a training learns from and is judged on: masked text (`corpora.py`) or a task's examples.

A command opens the data; the run folder, the engine and the loop ask it these things and no others.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lert_ds.labels import LTP_TAGS, TagSets
from lert_ds.train.trainer import Data, TrainConfig

LERT_VOCABULARY_SIZE = 21_128
"""WordPieces of Chinese BERT and of LERT."""


@dataclass(frozen=True)
class DataFacts:
    """What the shape and the cost of a training depend on."""

    length: int
    """Tokens of the longest instance."""
    vocabulary_size: int
    pad_id: int
    tag_sets: TagSets
    instances: int | None
    """Of the training; None where the corpus is not there yet."""
    held_out: int
    """Of the evaluation."""

    @classmethod
    def assumed(cls, length: int) -> "DataFacts":
        """Return the facts of a corpus as `prepare-lert` makes it, for planning ahead."""
        return cls(length, LERT_VOCABULARY_SIZE, 0, LTP_TAGS, None, 0)


class TrainingData(Protocol):
    """Where the instances of a training come from."""

    @property
    def tokenizer_folder(self) -> Path:
        """Whose tokenizer the ids are of."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is trained on: the same instances in the same order."""
        ...

    @property
    def facts(self) -> DataFacts:
        """What the shape and the cost depend on."""
        ...

    def batches(self, train: TrainConfig, seed: int, micro_batch_size: int) -> Data:
        """Return this process's batches of a run."""
        ...

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return what a trivial solution reaches on the held-out part: metric, label, value."""
        ...

    def verify(self, place: int, count: int) -> None:
        """Read through the share of the process number `place` of `count`, for damage.

        Raises:
            UserError: something is not as it was written.
        """
        ...
