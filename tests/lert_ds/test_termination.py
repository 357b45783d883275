"""SIGTERM ends a process in order, and in any case."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lert_ds.termination import EXIT_CODE, Terminated, orderly_termination

HANGING = """
import signal, sys, time
from lert_ds import termination
termination.GRACE_SECONDS = 2
try:
    with termination.orderly_termination():
        print("ready", flush=True)
        time.sleep(60)
finally:
    print("ending", flush=True)
    time.sleep(60)  # as a library might that waits for ever
"""


def _work_until_told(undone: list[str]) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    except Exception:  # noqa: BLE001 - as a command may have it
        undone.append("swallowed")
    finally:
        undone.append("undone")


def test_sigterm_is_an_exception_that_nobody_takes_for_a_failure() -> None:
    before = signal.getsignal(signal.SIGTERM)
    undone: list[str] = []
    try:
        with pytest.raises(Terminated), orderly_termination():
            _work_until_told(undone)
        assert undone == ["undone"]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)


def test_without_a_signal_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with orderly_termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_that_the_command_sets_itself_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with orderly_termination():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("signals", [1, 2])
def test_what_hangs_while_it_ends_is_ended(signals: int) -> None:
    started = time.monotonic()
    command = [sys.executable, "-c", HANGING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ending\n"
        if signals == 2:
            process.send_signal(signal.SIGTERM)
        code = process.wait(20)
    assert code == (EXIT_CODE if signals == 2 else -signal.SIGALRM)
    assert time.monotonic() - started < 20


def test_a_fork_ends_by_the_signal_without_a_word() -> None:
    with orderly_termination():
        child = os.fork()
        if not child:
            try:
                time.sleep(60)
            finally:
                os._exit(7)  # the exception of the parent's handler would lead here
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_CODE
