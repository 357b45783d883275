"""Tasks in worker processes, none of which outlives the run: started fast, and noticed when killed.

datatrove's own pool waits for ever for the task of a worker that was killed, and its workers go on
when the process that started them is.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lert_ds.errors import CorpusError

_SIGNAL_SECONDS = 0.3
"""In which a signal to all processes of a run also reaches this one."""
_END_SECONDS = 5.0


def run_tasks(
    call: Callable[[int], Any], tasks: Sequence[int], workers: int, title: str, preload: str
) -> list[Any]:
    """Return `call(task)` of all `tasks`, in any order; the first error ends them all.

    Args:
        call: Can be pickled, as can what it returns and raises.
        tasks: What it takes.
        workers: Processes that do them.
        title: What they do, for the message.
        preload: Module that is imported once, in the server that the workers are forked from.

    Raises:
        CorpusError: a worker was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _live_no_longer_than_the_parent)
    try:
        futures = [pool.submit(call, task) for task in tasks]
        return [future.result() for future in as_completed(futures)]
    except BrokenProcessPool as error:
        time.sleep(_SIGNAL_SECONDS)  # all were told to end: then that is what is said
        raise CorpusError(
            f"{title}: a worker was killed, most often for want of memory; what is finished "
            "stays: run again with fewer executor.workers or a smaller split_megabytes"
        ) from error
    finally:
        # Not the orderly way: it waits for the tasks that are under way.
        pool.shutdown(wait=False, cancel_futures=True)
        children = [p for p in multiprocessing.active_children() if p not in others]
        for child in children:
            child.kill()
        for child in children:
            child.join(_END_SECONDS)


def _live_no_longer_than_the_parent() -> None:
    """End this worker when the process that started it ends, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the others
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
