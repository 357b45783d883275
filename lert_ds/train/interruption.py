"""What asks a training to stop in good order: a signal, or the wall clock.

SIGTERM (a scheduler, a launcher), SIGUSR1 (Slurm's warning) and SIGINT (Ctrl-C) let the step end;
the trainer then saves and the command exits 0. The same signal again, two seconds later or more,
exits at once. Sooner is no second one: launchers pass on a signal that the processes have already.
"""

import os
import signal
import time
from types import FrameType
from typing import Any, Self

import psutil

from lert_ds.termination import STOP_SIGNALS

CLOCK = 1000
"""The code of the wall clock; a signal's is its number."""

_SECOND_AFTER_SECONDS = 2.0


class Interruption:
    """Notes signals while it is entered; asks to stop where the time is used up."""

    def __init__(self, stop_before_hours: float | None) -> None:
        """Stop in time to be done `stop_before_hours` after this process started; None: never."""
        self._code = 0
        self._first: dict[int, float] = {}
        self._before: dict[int, Any] = {}
        self._end = float("inf")
        if stop_before_hours is not None:
            self._end = psutil.Process().create_time() + stop_before_hours * 3600

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def code(self, margin_seconds: float) -> int:
        """Return what asks to stop, 0 for nothing.

        `margin_seconds`: what stopping takes, to be done before the wall-clock limit.
        """
        if time.time() + margin_seconds >= self._end:
            return CLOCK
        return self._code

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._first.setdefault(number, now) >= _SECOND_AFTER_SECONDS:
            os.write(2, b"stopped at once by a second signal; nothing was saved\n")
            os._exit(128 + number)
        self._code = number


def reason(code: int) -> str:
    """Return what a code means, in words."""
    return "the wall-clock limit" if code == CLOCK else signal.Signals(code).name
