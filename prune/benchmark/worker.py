"""A process that runs one model and nothing else, so that its threads and its memory are its own.

    parent ─("time", key, inputs, seconds)→ standard input            ┐
    parent ←[0.0031, 0.0030, …]            ─ the pipe that ANSWERS is ┘   one pickle each

    python -m prune.benchmark.worker '{"folder": "runs/edge", "graph": "int8"}'
    python -m prune.benchmark.worker '{"folder": "runs/a", "graph": null, "precision": "bf16",
                                       "head": "mlm"}'

It ends when its standard input does: no worker outlives the process that asks it. That of an edge
folder imports no PyTorch: what it takes is what the model takes on a device.
"""

import json
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lert_ds.edge.edge_model import EdgeModel, GraphName
from lert_ds.errors import UserError
from prune.benchmark.failure import Failure

if TYPE_CHECKING:  # pydantic comes with it, and its memory would be the model's
    from prune.export.export_config import HeadName

Arrays = Mapping[str, NDArray[Any]]
Runner = Callable[[Arrays], Mapping[str, NDArray[np.float32]]]
"""Inputs (`input_ids`, `attention_mask` and `token_type_ids`, int64 [batch, length], and
of models that fill [MASK] `masked_positions`, int64 [masked], indices into the flattened
[batch * length]) to outputs by name."""
Opener = Callable[[int], Runner]
"""Number of threads to a runner of that many."""


ANSWERS = "LERT_DS_ANSWERS"
"""Environment variable: the number of the pipe for the answers; libraries print where they like."""


class Session:
    """What a worker can be asked; each method is one request."""

    def __init__(self, open_model: Opener) -> None:
        """Answer for the model that `open_model` opens."""
        self._open_model = open_model
        self._run: Runner | None = None
        self._inputs: dict[str, Arrays] = {}
        self._last_seconds: dict[str, float] = {}

    def open(self, threads: int) -> None:
        """Open the model for a number of threads; one that is open is closed first."""
        self._run = None
        self._run = self._open_model(threads)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Return the outputs for `inputs`, by name."""
        assert self._run is not None, "not open"
        return dict(self._run(inputs))

    def time(self, key: str, inputs: Arrays | None, seconds: float) -> list[float]:
        """Return the wall time in seconds of each of several calls, one at least.

        An untimed call goes before them: another process has had the core's caches meanwhile. It
        is left out where the one before took longer than `seconds`, when caches matter little.

        Args:
            key: Name of the inputs.
            inputs: None for those that were given under `key` before.
            seconds: Calls go on until they have taken this long together.
        """
        assert self._run is not None, "not open"
        if inputs is not None:
            self._inputs[key] = inputs
        given = self._inputs[key]
        if self._last_seconds.get(key, 0.0) < seconds:
            self._run(given)
        taken: list[float] = []
        while not taken or sum(taken) < seconds:
            started = time.perf_counter()
            self._run(given)
            taken.append(time.perf_counter() - started)
        self._last_seconds[key] = taken[-1]
        return taken

    def peak_memory(self) -> int:
        """Return the most bytes of memory that the process has had."""
        return peak_memory_bytes()

    def modules(self) -> list[str]:
        """Return the names of the libraries that are imported."""
        return sorted({name.partition(".")[0] for name in sys.modules})


def peak_memory_bytes() -> int:
    """Return the most bytes of memory that this process has had since its program was started.

    From /proc where there is one: what getrusage says starts on Linux from what the parent had.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def serve(open_model: Opener) -> None:
    """Answer the parent until it closes standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    with os.fdopen(int(os.environ[ANSWERS]), "wb") as answers:
        session = Session(open_model)
        while True:
            try:
                name, *arguments = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                pickle.dump(_answer(session, name, arguments), answers)
                answers.flush()
            except BrokenPipeError:  # the parent is gone
                os._exit(1)


def _answer(session: Session, name: str, arguments: list[Any]) -> Any:
    try:
        return getattr(session, name)(*arguments)
    except UserError as error:
        return Failure(str(error), True)
    except Exception:  # noqa: BLE001 - told by the parent
        return Failure(traceback.format_exc(), False)


def opener(
    folder: Path, graph: GraphName | None, precision: str, head: "HeadName" = "mlm"
) -> Opener:
    """Return what opens a model folder in PyTorch (`graph` None) or a graph of an edge folder."""
    if graph is None:
        # Here: the worker of an edge folder must not import PyTorch.
        from prune.benchmark import models as benchmark_models

        return benchmark_models.opener(folder, precision, head)
    return lambda threads: EdgeModel(folder, graph=graph, threads=threads).run


def main() -> None:
    """Serve the model that the command line names."""
    wish = json.loads(sys.argv[1])
    head = wish.get("head", "mlm")
    serve(opener(Path(wish["folder"]), wish["graph"], wish.get("precision", "fp32"), head))


if __name__ == "__main__":
    main()
