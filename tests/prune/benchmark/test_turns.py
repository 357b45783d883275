"""Turns: interleaved, compared within a round; workers that end, fail or die."""

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lert_ds.errors import UserError
from prune.benchmark.turns import Cell, Worker, measure, summarize, working

FAKE = """
import os, sys
from prune.benchmark.worker import serve
from lert_ds.errors import ModelError
print("said aloud")  # must not reach the parent's ears
def open_model(threads):
    if threads == 7: raise ModelError("seven is too many")
    if threads == 8: raise KeyError("eight")
    def run(inputs):
        if inputs.get("die"): os.kill(os.getpid(), 9)
        return {"threads": threads, **inputs}
    return run
serve(open_model)
"""


class Recorder:
    """A worker whose times are those of a script."""

    def __init__(self, name: str, log: list[Any], speed: float) -> None:
        self.name, self.log, self.speed = name, log, speed

    def ask(self, request: str, *arguments: Any) -> Any:
        self.log.append((self.name, request, *arguments))
        drift = 1 + len(self.log) // 9  # the machine gets slower and slower
        return [drift / self.speed] * 2 if request == "time" else None


def test_workers_take_turns_cell_by_cell() -> None:
    log: list[Any] = []
    told: list[tuple[int, int]] = []
    workers: Any = [Recorder("a", log, 1.0), Recorder("b", log, 2.0)]
    cells = [Cell(1, 1, 8), Cell(2, 1, 8), Cell(1, 4, 99)]
    inputs: Any = {"x": 1}
    found = measure(
        workers,
        cells,
        lambda place, cell: None if (place, cell.length) == (1, 99) else inputs,
        rounds=2,
        seconds=0.5,
        tell=lambda done, planned: told.append((done, planned)),
    )
    first, later = ("time", "1 8", inputs, 0.5), ("time", "1 8", None, 0.5)
    long, again = ("time", "4 99", inputs, 0.5), ("time", "4 99", None, 0.5)
    assert log == [
        ("a", "open", 1), ("b", "open", 1),
        ("a", *first), ("b", *first), ("a", *long),
        ("a", *later), ("b", *later), ("a", *again),
        ("a", "open", 2), ("b", "open", 2),
        ("a", *first), ("b", *first), ("a", *later), ("b", *later),
    ]  # fmt: skip
    assert list(found) == cells
    assert found[cells[2]][1] is None
    assert [len(found[cell][0] or []) for cell in cells] == [2, 2, 2]
    assert told == [(k, 6) for k in range(1, 7)]


def test_ratios_are_of_a_round_and_drift_does_not_reach_them() -> None:
    # Twice as fast in every round, on a machine that gets ten times slower in the last.
    first = [[2.0, 2.0], [4.0, 4.0], [40.0, 40.0]]
    second = [[1.0, 1.0], [1.0, 1.0, 1.0], [20.0, 20.0]]
    a, b, c = summarize(Cell(1, 2, 50), [first, second, None])
    assert c is None
    assert a is not None
    assert b is not None
    assert (a["ratio"], a["ratio_range"]) == (1.0, [1.0, 1.0])
    assert (b["ratio"], b["ratio_range"]) == (2.0, [2.0, 4.0])
    assert (a["median_ms"], b["median_ms"], b["calls"]) == (4000.0, 1000.0, 7)
    assert b["p95_ms"] == 20_000.0
    assert b["tokens_per_second"] == 100.0
    (_, alone) = summarize(Cell(1, 1, 1), [None, second])
    assert alone is not None
    assert alone["ratio"] is None


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    path = tmp_path / "fake_worker.py"
    path.write_text(FAKE)
    return [str(path)]


def test_answers_and_failures_come_back(script: list[str]) -> None:
    with working({"a": script, "b": script}) as (one, other):
        one.ask("open", 3)
        assert one.ask("run", {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
        with pytest.raises(UserError, match=r"^seven is too many$"):
            one.ask("open", 7)
        with pytest.raises(RuntimeError, match=r"(?s)b, in its own process: .*KeyError: 'eight'"):
            other.ask("open", 8)
        other.ask("open", 2)  # it is still there
        assert other.ask("run", {})["threads"] == 2


def test_a_worker_that_dies_gives_one_sentence(script: list[str]) -> None:
    with working({"small model": script}) as (worker,):
        worker.ask("open", 1)
        with pytest.raises(
            UserError, match=r"^small model: the process that measures it was killed"
        ):
            worker.ask("run", {"die": True})
    with working({"gone": ["-c", "raise SystemExit(3)"]}) as (worker,):
        with pytest.raises(UserError, match=r"gone: .* ended \(exit code 3\)") as told:
            worker.ask("open", 1)
        assert "\n" not in str(told.value)


def test_workers_end_with_the_block_however_it_ends(script: list[str]) -> None:
    processes = []

    def interrupted() -> None:
        with working({"a": script, "b": script}) as workers:
            processes.extend(worker._process for worker in workers)
            workers[0].ask("open", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(processes) == 2
    assert all(process.returncode == -signal.SIGKILL for process in processes)


def test_a_worker_ends_when_its_parent_does(script: list[str]) -> None:
    code = (
        "import os\nfrom prune.benchmark.turns import Worker\n"
        f"w = Worker('a', {script!r}); w.ask('open', 1)\n"
        "os.write(int(os.environ['LERT_DS_ANSWERS']), b'%d' % w._process.pid)\n"
        "os.kill(os.getpid(), 9)"
    )
    parent = Worker("parent", ["-c", code])  # any process with a pipe will do
    child = int(parent._answers.read())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    parent.close()
