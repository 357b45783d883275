"""The worker processes of datatrove's local pools: start them fast, and notice when one dies."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import multiprocess  # type: ignore[import-untyped]  # the fork of the standard's that datatrove uses

from lert_ds.errors import CorpusError

_POLL_SECONDS = 1.0


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
    stop, died = threading.Event(), threading.Event()
    # Processes are numbered: after this one come datatrove's manager, then the pool's workers.
    last = _number(multiprocess.Process()) + 1 + workers

    def look() -> None:
        while not stop.wait(_POLL_SECONDS):
            children = [c for c in multiprocess.active_children() if "PoolWorker" in c.name]
            if any(_number(child) > last for child in children):  # the pool has replaced one
                died.set()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    thread = threading.Thread(target=look, daemon=True)
    if workers > 1 and threading.current_thread() is threading.main_thread():
        thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not died.is_set():
            raise
        raise CorpusError(
            f"{title}: a worker was killed, most often for want of memory; what is finished "
            "stays: run again with fewer executor.workers or a smaller split_megabytes"
        ) from None
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


def _number(process: Any) -> int:
    return int(str(process.name).rpartition("-")[2].rpartition(":")[2])
