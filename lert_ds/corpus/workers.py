"""The worker processes of datatrove's local pools: start them fast, and notice when one dies."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import multiprocess  # type: ignore[import-untyped]  # the fork of the standard's that datatrove uses

from lert_ds.errors import CorpusError

_POLL_SECONDS = 1.0
_SIGNAL = signal.SIGUSR1  # SIGINT is ignored where a shell runs us in the background


def preload(module: str) -> None:
    """Import `module` once, in the server that the workers of all stages are forked from."""
    multiprocess.set_forkserver_preload([module])


@contextlib.contextmanager
def noticing_dead_workers(title: str, workers: int) -> Iterator[None]:
    """Turn the death of a worker into an error: its pool would wait for its task for ever.

    Args:
        title: what the workers do, for the message.
        workers: size of the pool.

    Raises:
        CorpusError: a worker was killed.
    """
    if workers == 1 or threading.current_thread() is not threading.main_thread():
        yield  # no pool, or nobody who can be interrupted
        return
    stop = threading.Event()
    # Processes are numbered: after this one come datatrove's manager, then the pool's workers.
    last = _number(multiprocess.Process()) + 1 + workers

    def look() -> None:
        while not stop.wait(_POLL_SECONDS):
            children = [c for c in multiprocess.active_children() if "PoolWorker" in c.name]
            if any(_number(child) > last for child in children):  # the pool has replaced one
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
                return

    def interrupt(*_: object) -> None:
        raise CorpusError(
            f"{title}: a worker was killed, most often for want of memory; what is finished "
            "stays: run again with fewer executor.workers or a smaller split_megabytes"
        )

    thread = threading.Thread(target=look, daemon=True)
    before = signal.signal(_SIGNAL, interrupt)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        signal.signal(_SIGNAL, before)


def _number(process: Any) -> int:
    return int(str(process.name).rpartition("-")[2].rpartition(":")[2])
