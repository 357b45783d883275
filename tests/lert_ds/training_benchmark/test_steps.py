from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lert_ds.objective import Batch
from lert_ds.training_benchmark.steps import PARTS, Times, take_steps


class Recorder:
    """An engine that writes down what is asked of it."""

    device = torch.device("cpu")
    accumulation = 2

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def train(self) -> None:
        self.calls.append("train")

    def set_learning_rate(self, value: float) -> None:
        self.calls.append(("rate", value))

    def set_batch_size(self, instances: int) -> None:
        self.calls.append(("batch", instances))

    def __call__(self, batch: Batch, *, step: int) -> Any:
        self.calls.append(("forward", int(batch.input_ids[0, 0]), step))
        return type("Output", (), {"loss": "loss"})

    def backward(self, loss: str) -> None:
        self.calls.append("backward")

    def step(self) -> None:
        self.calls.append("step")


def batches() -> Iterator[tuple[int, Batch]]:
    nothing = torch.zeros(0, dtype=torch.int64)
    for number in range(100):
        yield number, Batch(torch.full((2, 8), number), None, nothing, nothing, {})


def test_steps_are_those_of_a_training() -> None:
    engine = Recorder()
    times = take_steps(engine, batches(), 2, step=7, batch_size=4)  # type: ignore[arg-type]
    assert engine.calls == [
        "train", ("rate", 0.0), ("batch", 4),
        ("forward", 0, 7), "backward", "step", ("forward", 1, 7), "backward", "step",
        ("forward", 2, 7), "backward", "step", ("forward", 3, 7), "backward", "step",
    ]  # fmt: skip
    assert times.tokens == 4 * 16
    assert len(times.steps) == len(times.processor) == 2
    for index, whole in enumerate(times.steps):
        parts = [times.parts[part][index] for part in PARTS]
        assert min(parts) > 0
        assert sum(parts) <= whole


def test_medians() -> None:
    times = Times(steps=[3.0, 1.0, 2.0])
    times.parts["update"] = [1.0, 9.0, 2.0]
    assert times.step_seconds == 2.0
    assert times.median("update") == pytest.approx(2.0)
