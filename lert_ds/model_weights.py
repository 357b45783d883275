"""The tensors of a model folder, read by us: transformers would follow more of what it finds there.

It joins the names of an index to the folder as they are, takes other files where config.json or an
adapter names them, and reads a distributed checkpoint, whose metadata is a pickle.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lert_ds.errors import ModelError, UserError
from lert_ds.files import inside

_INDEX = ".index.json"
_SAFE = ".safetensors"


def read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors in the file `name` of a model folder, or in those that the index names.

    The released LERT and BERT models are pickles. Of a pickle nothing but tensors is read
    (`weights_only`): what else it holds is refused, not run.

    Raises:
        ModelError: a file is missing or damaged, holds more than tensors, or is none of the folder.
    """
    tensors: dict[str, Tensor] = {}
    for path in files_of(folder, name):
        tensors.update(_read(path))
    return tensors


class WeightFiles:
    """The tensors of a model folder, one at a time: for what is larger than memory twice.

    Safetensors are read when they are asked for, not mapped, so that what was read goes; a pickle
    is read at once.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Open the file `name`, or those that the index `name` names; errors as `read_weights`."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Name of each tensor to its shape."""
        self._files: dict[str, tuple[Path, Any]] = {}
        self._tensors: dict[str, Tensor] = {}
        for path in files_of(folder, name):
            if path.suffix == _SAFE:
                self._open(path)
            else:
                self._tensors.update(_read(path))
        self.shapes |= {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return a tensor, in memory of its own.

        Raises:
            ModelError: its file is damaged.
        """
        if name in self._tensors:
            return self._tensors[name]
        path, file = self._files[name]
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        return tensor

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt", backend="pread")
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                self._files[name] = path, file
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the files with the tensors: the file `name`, or those that the index `name` names.

    Raises:
        ModelError: the index cannot be read, or names a file of another kind or place.
    """
    path = folder / name
    if not name.endswith(_INDEX):
        return [path]
    kind = Path(name.removesuffix(_INDEX)).suffix
    try:
        tree: Any = json.loads(path.read_text("utf-8"))
        names = sorted({str(name) for name in tree["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path}: no index of weights ({error!r}); copy or download it again"
        ) from error
    for name in names:
        if not name.endswith(kind):  # an index of safetensors makes no pickle be read
            raise ModelError(f"{path}: it names {name!r}, which is no {kind} file; copy it again")
    try:
        return [inside(folder, name) for name in names]
    except UserError as error:
        raise ModelError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == _SAFE:
            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
    ) as error:
        raise _unreadable(path, error) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ModelError(f"{path}: it is no table of tensors by name; name a model's folder")
    return dict(tensors)


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = str(error).strip().partition("\n")[0]
    return ModelError(
        f"{path}: its weights cannot be read ({reason}); the file is damaged or no model: "
        "copy or download it again"
    )
