"""The one home of TensorFlow: variables out of a checkpoint, and into one.

A checkpoint `model.ckpt` is `model.ckpt.index` (name, type, shape, place and checksum of each
variable) and `model.ckpt.data-00000-of-00001` (their bytes), TensorFlow's format V2 since 0.12.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lert_ds.errors import ModelError, UserError

INDEX = ".index"
_ALIGNMENT_BYTES = 64
"""Of a tensor that TensorFlow takes as it lies in memory."""
_SHARD = re.compile(r"(?P<prefix>.+)\.data-(?P<number>\d{5})-of-(?P<count>\d{5})")


def shards(prefix: Path) -> list[Path]:
    """Return the data files of a checkpoint, in their order.

    Raises:
        ModelError: one is missing.
    """
    found, counts = {}, set()
    for path in prefix.parent.glob("*"):
        match = _SHARD.fullmatch(path.name)
        if match and match["prefix"] == prefix.name:
            found[int(match["number"])] = path
            counts.add(int(match["count"]))
    if len(counts) > 1:
        raise ModelError(
            f"{prefix}: data files of two checkpoints ({sorted(p.name for p in found.values())}); "
            "leave those of one there"
        )
    count = counts.pop() if counts else 1
    for number in range(count):
        if number not in found:
            raise ModelError(
                f"{prefix}.data-{number:05}-of-{count:05} is missing, which holds weights; copy or "
                "download the checkpoint again"
            )
    return [found[number] for number in range(count)]


class Checkpoint:
    """A checkpoint that is open for reading."""

    def __init__(self, prefix: Path) -> None:
        """Open the checkpoint `prefix`, a path without `.index`.

        Raises:
            ModelError: a file is missing, damaged or too short.
            UserError: TensorFlow is not installed.
        """
        self.prefix, self.files = prefix, [Path(f"{prefix}{INDEX}"), *shards(prefix)]
        self._errors = _errors(tensorflow := _tensorflow())
        try:
            self._reader = tensorflow.train.load_checkpoint(str(prefix))
            shapes = self._reader.get_variable_to_shape_map()
            types = self._reader.get_variable_to_dtype_map()
        except self._errors as error:
            raise _damaged(self.files[0], error) from error
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(shapes[n]) for n in sorted(shapes)}
        """Name of each variable to its shape."""
        needed = sum(math.prod(self.shapes[name]) * types[name].size for name in self.shapes)
        there = sum(path.stat().st_size for path in self.files[1:])
        if there < needed:
            raise ModelError(
                f"{self.files[-1]}: {there:,} bytes, but the variables take {needed:,}; it was cut "
                "short: copy or download the checkpoint again"
            )

    def read(self, variable: str) -> NDArray[np.float32]:
        """Return a variable in float32, its checksum held to.

        Raises:
            ModelError: its bytes are damaged, or are no numbers.
        """
        try:
            values = np.asarray(self._reader.get_tensor(variable))
        except self._errors as error:
            raise _damaged(self.files[-1], error) from error
        try:
            return values.astype(np.float32, copy=False)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{self.prefix}: {variable} holds {values.dtype}, no numbers; it is no weight"
            ) from error


def write(
    prefix: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], NDArray[np.float32]]
) -> None:
    """Write the checkpoint `prefix`, one data file of float32 variables.

    TensorFlow takes all at once. They lie in one stretch of memory that it shares: made one by one
    from arrays that come and go, they left the heap so torn that it took twice their size.

    Args:
        prefix: Path of the files without `.index`.
        shapes: Name of each variable to its shape.
        read: Name to values.

    Raises:
        UserError: TensorFlow is not installed.
    """
    tensorflow = _tensorflow()
    places = _places(shapes)
    with tensorflow.device("CPU:0"):
        tensors = []
        for name, place in places.items():
            place[...] = read(name)
            tensors.append(tensorflow.experimental.dlpack.from_dlpack(place.__dlpack__()))
        tensorflow.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=list(places),
            shape_and_slices=[""] * len(places),
            tensors=tensors,
        )


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Return an array for each shape, all in one stretch of memory, aligned as TensorFlow asks."""
    numbers_a_unit = _ALIGNMENT_BYTES // np.dtype(np.float32).itemsize
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    units = {name: math.ceil(size / numbers_a_unit) for name, size in sizes.items()}
    memory = np.empty((sum(units.values()) + 1) * numbers_a_unit, np.float32)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES // memory.itemsize
    places = {}
    for name, shape in shapes.items():
        places[name] = memory[start : start + sizes[name]].reshape(shape)
        start += units[name] * numbers_a_unit
    return places


def _tensorflow() -> Any:
    # It does no arithmetic here; its notes at the start would only puzzle.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise UserError(
            "TensorFlow reads and writes its checkpoints, and is not installed; "
            "say pip install 'lert-ds[tf]'"
        ) from error
    return tensorflow


def _errors(tensorflow: Any) -> tuple[type[Exception], ...]:
    # Its reader raises Python's own for some of them.
    return (tensorflow.errors.OpError, LookupError, ValueError, RuntimeError)


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200]
    return ModelError(
        f"{path}: TensorFlow cannot read it ({reason}); copy or download the checkpoint again"
    )
