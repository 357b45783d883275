"""How many instances a step takes, and in rows of which length: pure functions of the step.

    train.batch_size = 1024
    train.batch_warmup = [[0, 256], [10_000, 512], [20_000, 1024]]
    train.lengths = [[0, 128], [1_800_000, 512]]                    instances of 512 tokens

    step          0 … 9,999     10,000 … 19,999   20,000 … 1,799,999   1,800,000 …
    instances     256           512               1,024                1,024
    rows          1,024 × 128   2,048 × 128       4,096 × 128          1,024 × 512

An instance is one of the corpus, whatever rows it is used as, so samples, epochs and tokens mean
the same in every phase, and a micro-batch has as many tokens.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from lert_ds.config import Config

Stages = tuple[Annotated[tuple[int, int], Field(strict=False)], ...]
"""(step, value) pairs: from that step on, that value holds."""

ENDLESS = 2**62
"""More steps than any run has."""


class Phase(NamedTuple):
    """Steps that are alike."""

    first: int
    """Its first step."""
    stop: int
    """The step after its last."""
    batch_size: int
    """Instances a step."""
    length: int | None
    """Tokens a row; None for those of an instance."""

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return self.stop - self.first

    @property
    def samples(self) -> int:
        """Instances that it takes."""
        return self.steps * self.batch_size


class BatchSchedule(Config):
    """What a step takes, and how that changes over the run."""

    batch_size: int
    """Instances an optimizer step, over all processes."""
    batch_warmup: Stages = ()
    """Smaller batches at first, as [step, instances] pairs: from which step on how many; the last
    is batch_size. [[0, 256], [10_000, 512], [20_000, 1024]]."""
    lengths: Stages = ()
    """Shorter rows at first, as [step, tokens] pairs: [[0, 128], [1_800_000, 512]] uses instances
    of 512 tokens as four rows of 128 before step 1,800,000."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: must be 1 or more")
        _check_stages("batch_warmup", self.batch_warmup)
        _check_stages("lengths", self.lengths)
        if self.batch_warmup and self.batch_warmup[-1][1] != self.batch_size:
            raise ValueError(
                f"batch_warmup ends with {self.batch_warmup[-1][1]} instances but batch_size = "
                f"{self.batch_size}; let its last pair be the full batch"
            )
        return self

    @property
    def batch_sizes(self) -> list[int]:
        """Every size that a batch has in the run."""
        return [size for _, size in self.batch_warmup] or [self.batch_size]

    def batch_size_at(self, step: int) -> int:
        """Return how many instances step `step` takes, over all processes."""
        return _value_at(self.batch_warmup, step) if self.batch_warmup else self.batch_size

    def length_at(self, step: int) -> int | None:
        """Return how many tokens a row has at `step`; None for those of an instance."""
        return _value_at(self.lengths, step) if self.lengths else None

    def phases(self, steps: int) -> list[Phase]:
        """Return the phases of the first `steps` steps."""
        borders = {0} | {step for step, _ in (*self.batch_warmup, *self.lengths)}
        starts = sorted(step for step in borders if step < steps)
        return [
            Phase(first, stop, self.batch_size_at(first), self.length_at(first))
            for first, stop in itertools.pairwise([*starts, steps])
        ]

    def samples_before(self, step: int) -> int:
        """Return how many instances the steps before `step` take."""
        return sum(phase.samples for phase in self.phases(step))

    def steps_for(self, samples: int) -> int:
        """Return how many steps it takes to use `samples` instances, or a few more."""
        for phase in self.phases(ENDLESS):
            if samples <= phase.samples:
                break
            samples -= phase.samples
        return phase.first - (-samples // phase.batch_size)

    def length_borders(self, step: int, samples: int) -> list[tuple[int, int]]:
        """Return (sample, tokens) pairs: from which sample on which length a row has.

        Args:
            step: Where the training stands.
            samples: What it has used; with `step`, since the batch may have been another once.
        """
        borders: list[tuple[int, int]] = []
        for phase in self.phases(ENDLESS):
            if phase.length is None or phase.stop <= step:
                continue
            if not borders or borders[-1][1] != phase.length:
                borders.append((samples, phase.length))
            samples += (phase.stop - max(phase.first, step)) * phase.batch_size
        return borders


def _value_at(stages: Sequence[tuple[int, int]], step: int) -> int:
    return next(value for first, value in reversed(stages) if first <= step)


def _check_stages(key: str, stages: Sequence[tuple[int, int]]) -> None:
    if not stages:
        return
    written = [list(pair) for pair in stages]
    if stages[0][0] != 0:
        raise ValueError(f"{key} = {written}: its first pair must say what holds from step 0 on")
    for (first, _), (second, _) in itertools.pairwise(stages):
        if second <= first:
            raise ValueError(f"{key} = {written}: step {second} does not come after step {first}")
    if min(value for _, value in stages) < 1:
        raise ValueError(f"{key} = {written}: the second number of a pair must be 1 or more")
