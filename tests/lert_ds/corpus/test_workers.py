"""Worker processes: what they return and raise, and that none outlives the run, killed or not."""

import importlib
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lert_ds.corpus.workers import run_tasks
from lert_ds.errors import CorpusError

HERE = "lert_ds.corpus.workers"
CALLS = """
import os, signal, time
from lert_ds.errors import CorpusError

def double(number):
    return 2 * number

def die(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def refuse(number):
    if number == 1:
        raise CorpusError("a.txt:7: not UTF-8")
    time.sleep(60)

def sleep_long(number):
    time.sleep(600)
"""
LAUNCHED = """
import sys
sys.path.insert(0, sys.argv[1])
import worker_calls
from lert_ds.corpus.workers import run_tasks
if __name__ == "__main__":
    print("ready", flush=True)
    run_tasks(worker_calls.sleep_long, range(2), 2, "sleeping", "lert_ds.corpus.workers")
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of what tasks call; workers cannot import this file, whose folder is no package."""
    (tmp_path / "worker_calls.py").write_text(CALLS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("worker_calls")
    del sys.modules["worker_calls"]


def test_every_task_is_done_once(calls: Any) -> None:
    assert sorted(run_tasks(calls.double, range(7), 2, "doubling", HERE)) == [0, 2, 4, 6, 8, 10, 12]
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_noticed(calls: Any) -> None:
    started = time.monotonic()
    with pytest.raises(CorpusError, match=r"annotating: a worker was killed.*executor.workers"):
        run_tasks(calls.die, range(4), 2, "annotating", HERE)
    assert time.monotonic() - started < 20


def test_an_error_of_one_task_ends_the_others_at_once(calls: Any) -> None:
    started = time.monotonic()
    with pytest.raises(CorpusError, match=r"^a\.txt:7: not UTF-8$"):
        run_tasks(calls.refuse, range(2), 2, "reading", HERE)
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "worker_calls.py").write_text(CALLS)
    command = [sys.executable, "-c", LAUNCHED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        main, family = psutil.Process(process.pid), []
        limit = time.monotonic() + 30
        # The fork server, the resource tracker and two workers.
        while len(family) < 4 and time.monotonic() < limit:
            family = main.children(recursive=True)
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        _, alive = psutil.wait_procs(family, 10)
        for one in alive:
            one.kill()
    assert len(family) == 4
    assert not alive
