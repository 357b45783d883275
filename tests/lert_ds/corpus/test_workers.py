"""A worker that is killed ends the run with a sentence, not with silence."""

import os
import signal
import time
from collections.abc import Iterator

import multiprocess
import pytest

from lert_ds.corpus.workers import noticing_dead_workers
from lert_ds.errors import CorpusError


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture
def _in_the_background() -> Iterator[None]:
    """Ignore SIGINT, as a shell has it for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_in_the_background")
def test_a_killed_worker_is_noticed() -> None:
    context = multiprocess.get_context("fork")  # quick; the pool is the same
    started = time.monotonic()
    with (
        pytest.raises(CorpusError, match=r"annotating: a worker was killed.*executor.workers"),
        noticing_dead_workers("annotating", 2),
        multiprocess.Manager(),  # datatrove starts one before its pool
        context.Pool(2) as pool,
    ):
        list(pool.imap_unordered(die, range(4)))
    assert time.monotonic() - started < 30


def test_an_interrupt_by_the_user_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), noticing_dead_workers("annotating", 2):
        raise KeyboardInterrupt
