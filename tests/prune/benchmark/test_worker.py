"""A worker: what it answers, what it counts as time, and that it needs no PyTorch for a graph."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lert_ds import tokenizer_files
from lert_ds.errors import ModelError
from prune.benchmark.columns import find_columns
from prune.benchmark.inputs import Text
from prune.benchmark.turns import Worker
from prune.benchmark.worker import Arrays, Session, opener, peak_memory_bytes

GIVEN: Arrays = {"input_ids": np.zeros((1, 4), np.int64)}


class Clock:
    """Time that passes only while a model runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
        self.now, self.calls, self.seconds = 0.0, 0, seconds
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        assert inputs is GIVEN
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        return {}


def test_calls_go_on_until_their_time_is_up_after_one_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, 9.0, 0.25)
    session = Session(lambda _: clock.run)
    session.open(1)
    assert session.time("a", GIVEN, 1.0) == [0.25] * 4
    assert session.time("a", None, 1.0) == [0.25] * 4  # the inputs are known by now
    assert clock.calls == 10


def test_a_long_call_is_made_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 2.0)
    session = Session(lambda _: clock.run)
    session.open(1)
    assert session.time("a", GIVEN, 1.0) == [2.0]
    assert session.time("a", None, 1.0) == [2.0]
    assert clock.calls == 3  # one to warm up, once


def test_peak_memory_is_the_processes_own_and_never_falls() -> None:
    before = peak_memory_bytes()
    assert before > 20 * 2**20
    block = np.ones(64 * 2**20, np.uint8)
    assert peak_memory_bytes() >= before
    del block
    # What the program before it had must not count: this one has next to nothing.
    code = "from prune.benchmark.worker import peak_memory_bytes as p; print(p())"
    held = np.ones(512 * 2**20, np.uint8)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < held.nbytes


@pytest.fixture(scope="module")
def answers(tiny_model: Path, tiny_edge: Path) -> dict[str, dict[str, np.ndarray]]:
    inputs = Text(tokenizer_files.load(tiny_model), "丁七万丈三上").inputs(2, 12, 0.3)
    found = {}
    for column in find_columns([str(tiny_model), str(tiny_edge)], ["torch", "edge"], "fp32"):
        worker = Worker(column.name, column.command)
        try:
            worker.ask("open", 1)
            found[column.name] = worker.ask("run", inputs)
            if column.graph is not None:
                assert not {"torch", "transformers"} & set(worker.ask("modules"))
            assert worker.ask("peak_memory") > 20 * 2**20
        finally:
            worker.close()
    return found


def test_workers_run_what_they_were_started_for(answers: dict[str, dict[str, np.ndarray]]) -> None:
    wanted = answers["torch"]
    assert list(answers) == ["torch", "edge fp32", "edge int8"]
    for name, logits in wanted.items():
        np.testing.assert_allclose(answers["edge fp32"][name], logits, atol=1e-4)
        error = np.abs(answers["edge int8"][name] - logits).max()
        assert 0 < error < 0.5 * logits.std()


def test_opening_says_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        opener(tmp_path, "int8", "int8")(1)
