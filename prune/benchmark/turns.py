"""Models measured in turn, one process each: A B C D A B C D …, so that what slows one slows all.

The speed of a machine drifts, by other work and by heat. Only figures that were taken one after the
other are compared: a ratio is the median over rounds of the ratios within a round.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from lert_ds.errors import UserError
from prune.benchmark.failure import Failure
from prune.benchmark.worker import ANSWERS, Arrays

Timings = list[list[float]]
"""Rounds of calls: wall time in seconds of each."""

_PACKAGES = Path(__file__).parents[2]


class Cell(NamedTuple):
    """What one latency is measured on."""

    threads: int
    batch_size: int
    length: int
    """Tokens of each text, special ones too."""


class Worker:
    """A process that answers questions about one model; see `prune.benchmark.worker`."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Start `python command…` to measure what the user knows as `name`."""
        path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH")]))
        self.name = name
        reading, writing = os.pipe()
        self._answers = os.fdopen(reading, "rb")
        try:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,
                pass_fds=(writing,),
                env={**os.environ, "PYTHONPATH": path, ANSWERS: str(writing)},
            )
        finally:
            os.close(writing)

    def ask(self, request: str, *arguments: Any) -> Any:
        """Return what the worker's `Session.<request>(*arguments)` returns.

        Raises:
            UserError: it raised one, or its process is gone.
        """
        process = self._process
        try:
            pickle.dump((request, *arguments), _pipe(process.stdin))
            _pipe(process.stdin).flush()
            answer = pickle.load(self._answers)
        except (EOFError, BrokenPipeError) as error:
            raise UserError(
                f"{self.name}: the process that measures it {_end_of(process)}; if the memory was "
                "too little, leave out the largest of batch_sizes and lengths"
            ) from error
        if isinstance(answer, Failure):
            if answer.is_user_error:
                raise UserError(answer.message)
            raise RuntimeError(f"{self.name}, in its own process: {answer.message}")
        return answer

    def close(self) -> None:
        """End the process: it holds nothing that is worth keeping."""
        self._process.kill()
        self._process.wait()
        for pipe in (_pipe(self._process.stdin), self._answers):
            with contextlib.suppress(OSError):
                pipe.close()


@contextlib.contextmanager
def working(commands: Mapping[str, Sequence[str]]) -> Iterator[list[Worker]]:
    """Start a worker for each name and command; they end when the block does, however it does."""
    workers: list[Worker] = []
    try:
        for name, command in commands.items():
            workers.append(Worker(name, command))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def measure(
    workers: Sequence[Worker],
    cells: Sequence[Cell],
    inputs_of: Callable[[int, Cell], Arrays | None],
    *,
    rounds: int,
    seconds: float,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
) -> dict[Cell, list[Timings | None]]:
    """Return the timings of each cell: for each worker a list of rounds, None where it has none.

    Cells of as many threads follow each other, since a model is opened for a number of threads.

    Args:
        workers: One a column.
        cells: What to measure.
        inputs_of: Place of a worker and a cell to its inputs; None where the model is too short.
        rounds: How often each cell is measured on each worker.
        seconds: Time of the calls of one turn, one call at least.
        tell: Called after each cell of a round with how many are done, of how many.
    """
    timings: dict[Cell, list[Timings | None]] = {}
    done = 0
    for threads in dict.fromkeys(cell.threads for cell in cells):
        same = [cell for cell in cells if cell.threads == threads]
        for worker in workers:
            worker.ask("open", threads)
        for number in range(rounds):
            for cell in same:
                for place, worker in enumerate(workers):
                    inputs = inputs_of(place, cell)
                    found = timings.setdefault(cell, [None] * len(workers))
                    if inputs is None:
                        continue
                    key = f"{cell.batch_size} {cell.length}"
                    taken = worker.ask("time", key, None if number else inputs, seconds)
                    found[place] = [*(found[place] or []), taken]
                done += 1
                tell(done, rounds * len(cells))
    return {cell: timings[cell] for cell in cells}


def summarize(cell: Cell, timings: Sequence[Timings | None]) -> list[dict[str, Any] | None]:
    """Return for each column `median_ms`, `p95_ms`, `tokens_per_second`, `calls`, and its ratio.

    `ratio` is the median over rounds of (median of the first column / median of this one): above 1
    is faster; `ratio_range` the least and the most. None where the first column was not measured.
    """
    rounds = [
        None if own is None else [float(np.median(calls)) for calls in own] for own in timings
    ]
    found: list[dict[str, Any] | None] = []
    for own, medians in zip(timings, rounds, strict=True):
        if own is None or medians is None:
            found.append(None)
            continue
        calls = np.concatenate(own)
        median = float(np.median(calls))
        ratios = None if rounds[0] is None else np.divide(rounds[0], medians)
        found.append(
            {
                "median_ms": 1e3 * median,
                "p95_ms": 1e3 * float(np.percentile(calls, 95)),
                "tokens_per_second": cell.batch_size * cell.length / median,
                "calls": len(calls),
                "ratio": None if ratios is None else float(np.median(ratios)),
                "ratio_range": None
                if ratios is None
                else [float(ratios.min()), float(ratios.max())],
            }
        )
    return found


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end_of(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "answers no more"
    return f"was killed (signal {-code})" if code < 0 else f"ended (exit code {code})"
