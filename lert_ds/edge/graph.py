"""One ONNX graph and what runs it: ONNX Runtime, on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from lert_ds.errors import ModelError

Arrays = Mapping[str, NDArray[Any]]


class Graph:
    """A graph that is ready to run.

    Attributes:
        path: Its file.
        inputs: Names of what it takes.
        outputs: Names of what it gives, to the size of the last axis, None where that is open.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Open the graph at `path`.

        Args:
            path: An .onnx file.
            threads: That an operator may use; None for as many as there are cores.

        Raises:
            ModelError: it cannot be read.
        """
        self.path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # a class of its own for each of a dozen reasons
            raise ModelError(
                f"{path}: ONNX Runtime cannot open it ({_reason(error)}); copy it again, or export "
                "the model again"
            ) from error
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self.outputs: dict[str, int | None] = {}
        for entry in self._session.get_outputs():
            last = entry.shape[-1] if entry.shape else None
            self.outputs[entry.name] = last if isinstance(last, int) else None

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Return the outputs by name.

        Args:
            inputs: At least those of `self.inputs`; the others are not read.

        Raises:
            ModelError: the graph cannot compute them, say for more positions than it has.
        """
        given = {name: inputs[name] for name in self.inputs}
        try:
            found = self._session.run(None, given)
        except (Fail, InvalidArgument, RuntimeException) as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
            raise ModelError(
                f"{self.path}: it cannot run {shapes} ({_reason(error)}); if config.json has other "
                "max_position_embeddings or vocab_size than the graph, export the model again"
            ) from error
        return dict(zip(self.outputs, found, strict=True))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
