"""Training steps taken one after the other, with a clock between their parts."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from lert_ds.objective import AnyBatch
from lert_ds.train.engine import Engine

PARTS = ("data wait", "forward", "backward", "update")
"""What a step's time is split into; backward holds the gradient sync that overlaps with it."""


@dataclass
class Times:
    """Seconds of each part, a list entry a step."""

    parts: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PARTS})
    steps: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Seconds of this process's threads a step: what a busy machine stretches least."""
    tokens: int = 0
    """Of all steps, on this process."""

    def median(self, part: str) -> float:
        """Return the median seconds of a part."""
        return statistics.median(self.parts[part])

    @property
    def step_seconds(self) -> float:
        """The median of the steps."""
        return statistics.median(self.steps)


class _Clock:
    """Marks moments on the device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the time between marks; waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize()
        between = []
        for first, second in zip(self._marks[:-1], self._marks[1:], strict=True):
            if isinstance(first, float) or isinstance(second, float):
                assert not isinstance(first, torch.cuda.Event)
                assert not isinstance(second, torch.cuda.Event)
                between.append(second - first)
            else:
                between.append(first.elapsed_time(second) / 1000.0)
        return between


def take_steps(
    engine: Engine,
    batches: Iterator[tuple[int, AnyBatch]],
    count: int,
    *,
    step: int,
    batch_size: int,
    learning_rate: float = 0.0,
) -> Times:
    """Return what `count` optimizer steps took; weights do not move at rate 0.

    Args:
        engine: What is trained.
        batches: This process's micro-batches.
        count: Optimizer steps.
        step: The step of the run that each of them pretends to be: task weights depend on it.
        batch_size: Instances a step, over all processes.
        learning_rate: Of the updates.
    """
    times = Times()
    engine.train()
    engine.set_learning_rate(learning_rate)
    engine.set_batch_size(batch_size)
    for _ in range(count):
        waited = 0.0
        clock = _Clock(engine.device)
        started, worked = time.perf_counter(), time.process_time()
        clock.mark()
        for _ in range(engine.accumulation):
            asked = time.perf_counter()
            number, batch = next(batches)
            waited += time.perf_counter() - asked
            times.tokens += batch.input_ids.numel()
            torch.manual_seed(number)
            clock.mark()
            output = engine(batch.to(engine.device), step=step)
            clock.mark()
            engine.backward(output.loss)
            clock.mark()
            engine.step()
            clock.mark()
        between = clock.seconds()
        times.steps.append(time.perf_counter() - started)
        times.processor.append(time.process_time() - worked)
        times.parts["data wait"].append(waited)
        for place, name in enumerate(PARTS[1:], start=1):
            times.parts[name].append(sum(between[place::4]))
    return times
