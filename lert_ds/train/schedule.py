"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

import math
from collections.abc import Callable
from typing import Literal, Self

from pydantic import model_validator

from lert_ds.config import Config


class ScheduleConfig(Config):
    """How the learning rate moves over the run."""

    kind: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """After the warm-up: linear or cosine decay, warm-up-stable-decay, or no decay."""
    warmup_steps: int = 10_000
    """Steps from 0 to the full rate, linearly (LERT: 10,000)."""
    warmup_share: float | None = None
    """The warm-up as a share of all steps, in the place of warmup_steps."""
    decay_share: float = 0.1
    """wsd only: the share of all steps, at the end, that decays linearly."""
    final_share: float = 0.0
    """The rate at the end as a share of the full one (LERT: 0)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps = {self.warmup_steps}: must be 0 or more")
        if self.warmup_share is not None and not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share = {self.warmup_share}: must be from 0 to below 1")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share = {self.final_share}: must be from 0 to 1")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share = {self.decay_share}: must be above 0 and up to 1")
        return self

    def warmup_of(self, steps: int) -> int:
        """Return how many of `steps` warm up."""
        return self.warmup_steps if self.warmup_share is None else int(self.warmup_share * steps)


def linear(done: float) -> float:
    """Return 1 at the start of the decay (0), 0 at its end (1)."""
    return 1.0 - done


def cosine(done: float) -> float:
    """Return half a cosine from 1 (at 0) to 0 (at 1)."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def constant(done: float) -> float:
    """Return 1 throughout."""
    return 1.0


_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
    "wsd": linear,
}


def multiplier(config: ScheduleConfig, step: int, steps: int) -> float:
    """Return the factor on the full learning rate at optimizer step `step` of `steps`.

    Step 0 is the first update. As in LERT's `optimization.py` the rate during the warm-up is
    step / warmup_steps, so the first update has rate 0 unless there is no warm-up; the decay counts
    from step 0 for `linear` (its TensorFlow polynomial decay does), from the end of the warm-up
    for the others.
    """
    warmup_steps = config.warmup_of(steps)
    if step < warmup_steps:
        return step / warmup_steps
    start = {
        "linear": 0.0,
        "wsd": max(warmup_steps, steps * (1.0 - config.decay_share)),
    }.get(config.kind, float(warmup_steps))
    done = (step - start) / max(steps - start, 1.0)
    height = _DECAYS[config.kind](min(max(done, 0.0), 1.0))
    return config.final_share + (1.0 - config.final_share) * height
