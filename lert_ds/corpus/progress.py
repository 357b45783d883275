"""Completed tasks of a stage to a progress bar on a terminal, or to plain lines elsewhere."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_LINE_SECONDS = 30.0


@contextlib.contextmanager
def watch(title: str, tasks: int, completed: Callable[[], int]) -> Iterator[None]:
    """Show how many of `tasks` are completed while the body runs."""
    started = time.monotonic()
    stop = threading.Event()
    console = Console(file=sys.stderr)  # bound now: the body may send standard error elsewhere
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(
        target=show, args=(console, title, tasks, completed, stop), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    log.info("%s: done in %.1f s", title, time.monotonic() - started)


def _show_bar(
    console: Console, title: str, tasks: int, completed: Callable[[], int], stop: threading.Event
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=tasks)
        while not stop.wait(_POLL_SECONDS):
            bar.update(task, completed=completed())


def _show_lines(
    _: Console, title: str, tasks: int, completed: Callable[[], int], stop: threading.Event
) -> None:
    while not stop.wait(_LINE_SECONDS):
        log.info("%s: %d of %d tasks", title, completed(), tasks)
