"""Trainings that cannot go on: `python tests/launch/watchdog_scenarios.py FOLDER`."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from forked_ranks import LONGEST_SECONDS, Scenario, kill_later, run

from lert_ds import distributed
from lert_ds.train import watchdog as module
from lert_ds.train.peers import Peers
from lert_ds.train.watchdog import Watchdog

FOLDER = Path(sys.argv[-1])
TIMEOUT_SECONDS = 3.0
PATIENT_SECONDS = 60.0


def watch(timeout_seconds: float = TIMEOUT_SECONDS) -> Watchdog:
    """Return a watchdog that has seen step 5 of a training; its verdict goes to a file."""

    def record(message: str) -> None:
        path = FOLDER / f"verdict-{distributed.world_size()}-{os.getpid()}"
        path.write_text(message)
        print(f"recorded: {message}", flush=True)  # noqa: T201

    watchdog = Watchdog(timeout_seconds, Peers(PATIENT_SECONDS), record)
    watchdog.start()
    watchdog.beat(5, "training")
    return watchdog


def hang_here() -> None:
    time.sleep(LONGEST_SECONDS)


def alone_hangs() -> None:
    watch()
    hang_here()


def alone_moves() -> None:
    watchdog = watch()
    for step in range(60):
        watchdog.beat(step, "training")
        time.sleep(0.1)
    watchdog.close()


def alone_hangs_in_native_code() -> None:
    watch()
    ctypes.PyDLL(None).sleep(int(LONGEST_SECONDS))  # it keeps the interpreter's lock


def alone_hangs_unheard() -> None:
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(read)  # as a launcher that is gone: writing to standard error fails
    watch()
    hang_here()


def alone_hangs_on_a_full_disk() -> None:
    def record(message: str) -> None:
        raise OSError(28, "No space left on device")

    watchdog = Watchdog(TIMEOUT_SECONDS, Peers(1), record)
    watchdog.start()
    watchdog.beat(5, "training")
    hang_here()


def stop(rank: int) -> None:
    """Stop one process as a debugger would; the other waits for it."""
    watch()
    time.sleep(1.0)  # the other has heard of this one
    if distributed.rank() == rank:
        kill_later(os.getpid(), 10.0)  # not left behind
        os.kill(os.getpid(), signal.SIGSTOP)
    hang_here()


def kill(rank: int) -> None:
    watchdog = watch()
    time.sleep(1.0)  # the other has heard of this one
    watchdog.beat(6, "saving")
    time.sleep(0.7)
    if distributed.rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    hang_here()


def fail(rank: int) -> None:
    watchdog = watch(PATIENT_SECONDS)  # a failure is told at once
    if distributed.rank() == rank:
        watchdog.fail("ValueError: no such thing", 2)
        sys.stdout.flush()
        os._exit(2)
    hang_here()


def fail_and_hang() -> None:
    module._LEAVING_SECONDS = 2.0
    watchdog = watch(PATIENT_SECONDS)
    if distributed.rank() == 1:
        watchdog.fail("ValueError: no such thing")
    hang_here()


def fall_behind() -> None:
    """Both processes live and neither moves: rank 1 hangs, and rank 0 waits for it."""
    watchdog = watch()
    if distributed.rank() == 0:
        time.sleep(0.5)
        watchdog.beat(6, "waiting for the others")
    hang_here()


def close() -> None:
    watchdog = watch(PATIENT_SECONDS)
    time.sleep(0.5 * distributed.rank())  # they do not come at once
    watchdog.close()


def move() -> None:
    watchdog = watch()
    (FOLDER / f"launched-{distributed.rank()}.ready").touch()
    while True:
        time.sleep(0.1)
        watchdog.beat(7, "training")


SCENARIOS = [
    Scenario("alone_hangs", 1, alone_hangs),
    Scenario("alone_moves", 1, alone_moves),
    Scenario("alone_hangs_in_native_code", 1, alone_hangs_in_native_code),
    Scenario("alone_hangs_unheard", 1, alone_hangs_unheard),
    Scenario("alone_hangs_on_a_full_disk", 1, alone_hangs_on_a_full_disk),
    Scenario("stopped", 2, lambda: stop(1)),
    Scenario("main_stopped", 2, lambda: stop(0)),
    Scenario("killed", 2, lambda: kill(1)),
    Scenario("main_killed", 2, lambda: kill(0)),
    Scenario("failed", 2, lambda: fail(1)),
    Scenario("main_failed", 2, lambda: fail(0)),
    Scenario("failed_and_hangs", 2, fail_and_hang),
    Scenario("behind", 2, fall_behind),
    Scenario("closed", 2, close),
    Scenario("launched", 2, move, launched=True),
]

if __name__ == "__main__":
    run(FOLDER, SCENARIOS)
