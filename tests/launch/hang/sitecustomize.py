"""A fault that no signal can make: rank 1 loops for ever at a step, its threads live on.

On PYTHONPATH of a training; LERT_DS_TEST_LOOP_AT says at which step.
"""

import os
import sys


def _loop_at(step: int) -> None:
    from lert_ds.train import watchdog

    beat = watchdog.Watchdog.beat

    def hang(self: watchdog.Watchdog, now: int, phase: str) -> None:
        beat(self, now, phase)
        while now == step and phase == "waiting for data":
            pass

    watchdog.Watchdog.beat = hang  # type: ignore[method-assign]


if os.environ.get("RANK") == "1" and "LERT_DS_TEST_LOOP_AT" in os.environ and "-m" in sys.orig_argv:
    _loop_at(int(os.environ["LERT_DS_TEST_LOOP_AT"]))
