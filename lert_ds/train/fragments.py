"""Pieces of named tensors in safetensors files, and reading any stretch of a tensor across files.

    the parameter "dense.weight", 3 x 4, cut by ZeRO for two processes

    rank-00000.safetensors    weights/dense.weight   numbers 0 to 6    exp_avg/dense.weight …
    rank-00001.safetensors    weights/dense.weight   numbers 7 to 11   …

A file says in its header where in the flattened parameter its pieces begin. So any number of
processes, in any layout, reads what it needs from the files of any other: nothing is converted.

safetensors' own writer takes a tensor from memory as this one does, but hashing would read the file
again, and it holds the interpreter while it writes: training would wait.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lert_ds.errors import CheckpointError
from lert_ds.train.checkpoint_folder import Written

WEIGHTS = "weights"
"""What the values of the parameters themselves are called; other kinds are the optimizer's."""

_HEADER_MULTIPLE = 8
_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
}


_NO_FRAGMENTS = (
    AttributeError, IndexError, KeyError, OSError, SafetensorError, TypeError, ValueError,
)  # fmt: skip
"""What reading a header raises where the file is another, or damaged."""


class Place(NamedTuple):
    """Where a piece lies in the parameter that it is of."""

    start: int
    """Of its first number in the flattened parameter."""
    shape: tuple[int, ...]
    """Of the whole parameter."""


class Fragment(NamedTuple):
    """What one process holds of one parameter."""

    place: Place
    tensors: Mapping[str, Tensor]
    """Kind (weights, exp_avg, …) to a flat tensor on the host; all are equally long."""


def write(path: Path, fragments: Mapping[str, Fragment]) -> Written:
    """Write the fragments of one process, flush them to the disk and return size and hash.

    Raises:
        OSError: no space, no permission.
    """
    tensors = {
        f"{kind}/{name}": tensor.detach().contiguous()
        for name, fragment in fragments.items()
        for kind, tensor in fragment.tensors.items()
    }
    places = {
        name: [fragment.place.start, *fragment.place.shape] for name, fragment in fragments.items()
    }
    header = _header(tensors, {"places": json.dumps(places)})
    digest, size = hashlib.sha256(header), len(header)
    with path.open("xb") as file:
        file.write(header)
        for tensor in tensors.values():
            content = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            file.write(content)  # both let other threads run: training goes on meanwhile
            digest.update(content)
            size += len(content)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return what opens a safetensors file: its length in 8 bytes, then JSON."""
    tree: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.numel() * tensor.element_size()
        tree[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(tree, ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _HEADER_MULTIPLE)  # the data then lie at a multiple of 8
    return len(text).to_bytes(8, "little") + text


class _Stretch(NamedTuple):
    start: int
    stop: int
    file: int


class Fragments:
    """The pieces in some files, as whole parameters that can be read stretch by stretch."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the headers of `paths`.

        Raises:
            CheckpointError: one is not such a file.
        """
        self.folder = paths[0].parent
        self._paths = list(paths)
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Parameter to its shape."""
        self.kinds: set[str] = set()
        self._stretches: dict[str, list[_Stretch]] = {}
        self._open: list[Any] = []
        self._keys: list[set[str]] = []
        for number, path in enumerate(self._paths):
            try:
                file: Any = safe_open(path, framework="pt")  # it has no types
                keys, places = set(file.keys()), json.loads(file.metadata()["places"])
                for name, (start, *shape) in places.items():
                    length = file.get_slice(f"{WEIGHTS}/{name}").get_shape()[0]
                    self.shapes[name] = tuple(shape)
                    stretch = _Stretch(start, start + length, number)
                    self._stretches.setdefault(name, []).append(stretch)
            except _NO_FRAGMENTS as error:
                raise CheckpointError(f"{path}: not a file of a checkpoint ({error})") from error
            self._open.append(file)
            self._keys.append(keys)
            self.kinds |= {key.partition("/")[0] for key in keys}

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Return the numbers `start` to `stop` of a flattened parameter, on the host.

        Raises:
            CheckpointError: no file has some of them.
        """
        parts, place = [], start
        for stretch in sorted(self._stretches.get(name, ())):
            if stretch.stop <= place or stretch.start > place or place >= stop:
                continue
            if (key := f"{kind}/{name}") not in self._keys[stretch.file]:
                continue
            until = min(stop, stretch.stop)
            whole = self._open[stretch.file].get_slice(key)
            parts.append(whole[place - stretch.start : until - stretch.start])
            place = until
        if place < stop:
            raise CheckpointError(
                f"{self.folder}: no file has the numbers {place} to {stop - 1} of {kind} of {name}"
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self, name: str, kind: str = WEIGHTS) -> Tensor:
        """Return a parameter in its own shape."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, torch.Size(shape).numel()).reshape(shape)


def deal(sizes: Mapping[str, int], hands: int) -> list[list[str]]:
    """Return names in `hands` lists of nearly equal total size; the same on every process."""
    dealt: list[list[str]] = [[] for _ in range(hands)]
    totals = [0] * hands
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = totals.index(min(totals))
        dealt[smallest].append(name)
        totals[smallest] += sizes[name]
    return dealt
