import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lert_ds.termination import STOP_SIGNALS
from lert_ds.train.interruption import CLOCK, Interruption, reason

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, time
from lert_ds.train.interruption import Interruption

with Interruption(None) as interruption:
    print("ready", flush=True)
    for line in sys.stdin:
        time.sleep(0.05)  # signals that are on their way
        print(interruption.code(0.0), flush=True)
"""


class Child:
    """A process that notes signals and tells its code when it is asked."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, bufsize=1,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def code(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        return int(self.process.stdout.readline())


@pytest.fixture
def start() -> Iterator[Callable[[], Child]]:
    children: list[Child] = []

    def begin() -> Child:
        children.append(Child())
        return children[-1]

    yield begin
    for child in children:
        child.process.kill()
        child.process.communicate()


def test_each_signal_asks_to_stop(start: Callable[[], Child]) -> None:
    child = start()
    assert child.code() == 0
    for number in STOP_SIGNALS:
        child.process.send_signal(number)
        assert child.code() == number
        assert child.code() == number, "until it is obeyed"


def test_one_signal_that_comes_twice_at_once_is_one(start: Callable[[], Child]) -> None:
    # A launcher passes on to its processes what they got from the terminal already.
    child = start()
    child.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    child.process.send_signal(signal.SIGINT)
    assert child.code() == signal.SIGINT


def test_another_signal_is_no_second_one(start: Callable[[], Child]) -> None:
    child = start()
    child.process.send_signal(signal.SIGUSR1)  # Slurm's warning, and then its end
    time.sleep(2.2)
    child.process.send_signal(signal.SIGTERM)
    assert child.code() == signal.SIGTERM


def test_a_second_signal_exits_at_once(start: Callable[[], Child]) -> None:
    child = start()
    child.process.send_signal(signal.SIGTERM)
    assert child.code() == signal.SIGTERM
    time.sleep(2.2)
    child.process.send_signal(signal.SIGTERM)
    _, said = child.process.communicate(timeout=10)
    assert child.process.returncode == 128 + signal.SIGTERM
    assert said == "stopped at once by a second signal; nothing was saved\n"


def test_what_was_there_before_is_put_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with Interruption(None):
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_the_clock_asks_in_time_to_be_done_before_the_limit() -> None:
    age = time.time() - psutil.Process().create_time()
    interruption = Interruption((age + 100.0) / 3600)  # 100 s are left
    assert interruption.code(0.0) == 0
    assert interruption.code(90.0) == 0
    assert interruption.code(101.0) == CLOCK
    assert Interruption(age / 3600).code(0.0) == CLOCK
    assert Interruption(None).code(1e12) == 0


def test_the_clock_does_not_hide_behind_a_signal() -> None:
    with Interruption(1e-9) as interruption:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.code(0.0) == CLOCK


def test_a_reason_is_told_in_words() -> None:
    assert reason(CLOCK) == "the wall-clock limit"
    assert [reason(number) for number in STOP_SIGNALS] == ["SIGTERM", "SIGINT", "SIGUSR1"]
    assert max(STOP_SIGNALS) < CLOCK, "the largest code of all processes is what counts"
