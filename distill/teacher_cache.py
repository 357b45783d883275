"""A folder of what teachers have said, written once for each masked instance, and read again.

FOLDER/
  cache.json                 whose answers these are: another teacher, corpus, masking … is refused
  0c5f…e1.safetensors        answers about some hundred instances; the name is the SHA-256 of the
                             content, and a file is there whole or not at all
      rows      int64 [n, 2]   (number of the masks, index of the instance)
      masked    int64 [n]      masked positions of each
      tokens    int64 [n]      its real tokens
      0/mlm/values  float16 [masked, k]   0/mlm/indices  uint16 [masked, k]   0/mlm/rest  float32
          or, of all logits, 0/mlm/values uint8 [masked, 21128], 0/mlm/scales float32 [masked, 2]
      0/pos/values  float16 [masked, classes]      small heads are kept whole
      0/hidden.4    float16 [tokens, width]        what the matches compare, of each layer

Every process gathers the answers to its own instances in memory and writes them when they are
large, when it has gone through the corpus, and at its end. What a kill loses is asked again. Two
processes never write one file; that two keep the same answer is possible and no harm.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors.numpy import save
from torch import Tensor

from distill.answers import Answer, Taught, TopLogits, from_bytes, to_bytes
from distill.features import Source
from lert_ds.errors import ConfigError
from lert_ds.files import sha256_of, write_whole

FILE_BYTES = 2**26
"""A process writes a file when what it has gathered is as large."""
_LOOK_SECONDS = 30.0
"""An answer that is not there is looked for in the other processes' new files this often."""

Array = npt.NDArray[Any]


Kind = Literal["top", "bytes", "exact"]
"""How the logits of a head are kept: the largest, all in 8 bits, or all as they are."""

_SMALL_HEAD = 256
"""Heads of so few classes are kept whole: bytes would spare little."""


class Layout(NamedTuple):
    """What is kept of each masked instance."""

    heads: tuple[Mapping[str, int], ...]
    """Of each teacher: head to its classes."""
    sources: tuple[Mapping[Source, int], ...]
    """Of each teacher: what matches compare, to its width."""
    kind: Kind
    """How logits are kept; with `exact` all else is in float32 too."""
    top_k: int = 0
    """Largest logits of a head, where these are kept."""

    def form(self, classes: int) -> Literal["top", "bytes", "whole"]:
        """Return how a head of so many classes is kept."""
        if self.kind == "exact" or classes <= (self.top_k if self.kind == "top" else _SMALL_HEAD):
            return "whole"
        return self.kind

    @property
    def float_bytes(self) -> int:
        """Return the bytes of a number."""
        return 4 if self.kind == "exact" else 2

    def instance_bytes(self, masked: float, tokens: float) -> float:
        """Return the bytes of an instance of so many masked positions and tokens."""
        size = 0.0
        for heads, sources in zip(self.heads, self.sources, strict=True):
            for classes in heads.values():
                # A float16 and a uint16 of each of the largest, and a float32 of the rest; a byte
                # of each, and two float32.
                sizes = {"top": self.top_k * 4 + 4, "bytes": classes + 8}
                size += masked * sizes.get(self.form(classes), classes * self.float_bytes)
            size += tokens * sum(sources.values()) * self.float_bytes
        return size


class Rows(NamedTuple):
    """Which instances a batch holds."""

    masks: Array
    """int64 [instances]: number of their masks."""
    indices: Array
    """int64 [instances]: places in the corpus."""


class TeacherCache:
    """The answers in a folder, of this process and of the others."""

    def __init__(self, folder: Path, layout: Layout, masks: int, instances: int) -> None:
        """Take a folder that `claim` has approved.

        Args:
            folder: Of the cache.
            layout: What is kept.
            masks: How many masks an instance has.
            instances: Of the corpus.
        """
        self.folder, self.layout, self._instances = folder, layout, instances
        self._places = np.full(masks * instances, -1, dtype=np.int64)
        """Of each masked instance: its file times 2^32, and its row there; -1 where there is none.
        Eight bytes each."""
        self._files: list[_File] = []
        self._known: set[str] = set()
        self._gathered: list[dict[str, Array]] = []
        self._bytes = 0
        self._looked = 0.0
        self.refresh()

    def __len__(self) -> int:
        """Return how many masked instances are answered."""
        return int(np.count_nonzero(self._places >= 0))

    def refresh(self) -> None:
        """Look for files that other processes have written."""
        self._looked = time.monotonic()
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._known:
                continue
            self._known.add(path.name)
            file = _File(path)
            number = len(self._files) << 32
            self._files.append(file)
            rows = file.rows()
            self._places[rows[:, 0] * self._instances + rows[:, 1]] = number + np.arange(len(rows))

    def verify(self, place: int, count: int) -> None:
        """Hash this process's share of the files, the process number `place` of `count`.

        Raises:
            ConfigError: one is not as it was written.
        """
        for file in self._files[place::count]:
            if sha256_of(file.path) != file.path.stem:
                raise ConfigError(
                    f"teacher_cache: {file.path} is damaged; delete it, and the teacher is asked "
                    "again for what it held"
                )

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return which of the instances are answered."""
        found = self._places_of(rows) >= 0
        if not found.all() and time.monotonic() - self._looked > _LOOK_SECONDS:
            self.refresh()
            found = self._places_of(rows) >= 0
        return found

    def read(self, rows: Rows, length: int) -> list[Answer]:
        """Return each teacher's answer about instances that all are answered.

        Args:
            rows: The instances of a batch.
            length: Tokens of the batch's rows; features are 0 at padding.
        """
        places = self._places_of(rows).tolist()
        assert min(places) >= 0
        found = [(self._files[place >> 32], place & 0xFFFFFFFF) for place in places]
        return [self._answer(teacher, found, length) for teacher in range(len(self.layout.heads))]

    def _answer(self, teacher: int, found: Sequence[tuple["_File", int]], length: int) -> Answer:
        def masked(name: str) -> Tensor:
            parts = [file.masked(f"{teacher}/{name}", row) for file, row in found]
            return torch.from_numpy(np.concatenate(parts))

        logits: dict[str, Taught] = {}
        for head, classes in self.layout.heads[teacher].items():
            values, form = masked(f"{head}/values"), self.layout.form(classes)
            if form == "top":
                indices = masked(f"{head}/indices").to(torch.int64)
                logits[head] = TopLogits(values.float(), indices, masked(f"{head}/rest"))
            elif form == "bytes":
                logits[head] = from_bytes(values, masked(f"{head}/scales"))
            else:
                logits[head] = values.float()
        sources = {}
        for source, width in self.layout.sources[teacher].items():
            features = torch.zeros(len(found), length, width)
            for place, (file, row) in enumerate(found):
                part = torch.from_numpy(file.tokens(f"{teacher}/{_name(source)}", row))
                features[place, : len(part)] = part
            sources[source] = features
        return Answer(logits, sources)

    def put(
        self,
        rows: Rows,
        chosen: npt.NDArray[np.bool_],
        masked: Array,
        tokens: Array,
        answers: Sequence[Answer],
    ) -> None:
        """Keep the answers about the `chosen` instances of a batch.

        Args:
            rows: The instances of the batch.
            chosen: bool [instances].
            masked: int64 [instances]: masked positions of each.
            tokens: int64 [instances]: real tokens of each.
            answers: Of each teacher, about the whole batch, on the host.
        """
        positions = torch.from_numpy(np.repeat(chosen, masked))
        kept: dict[str, Array] = {
            "rows": np.stack([rows.masks, rows.indices], axis=1)[chosen],
            "masked": masked[chosen],
            "tokens": tokens[chosen],
        }
        for teacher, answer in enumerate(answers):
            for head, logits in answer.logits.items():
                if isinstance(logits, TopLogits):
                    kept[f"{teacher}/{head}/values"] = self._number(logits.values[positions])
                    indices = logits.indices[positions].numpy().astype(np.uint16)
                    kept[f"{teacher}/{head}/indices"] = indices
                    kept[f"{teacher}/{head}/rest"] = logits.rest[positions].numpy()
                elif self.layout.form(logits.shape[-1]) == "bytes":
                    codes, scales = to_bytes(logits[positions])
                    kept[f"{teacher}/{head}/values"] = codes.numpy()
                    kept[f"{teacher}/{head}/scales"] = scales.numpy()
                else:
                    kept[f"{teacher}/{head}/values"] = self._number(logits[positions])
            for source, features in answer.sources.items():
                parts = [features[place, : tokens[place]] for place in np.flatnonzero(chosen)]
                kept[f"{teacher}/{_name(source)}"] = self._number(torch.cat(parts))
        self._gathered.append(kept)
        self._bytes += sum(array.nbytes for array in kept.values())
        if self._bytes >= FILE_BYTES:
            self.write()

    def rounded(self, answer: Answer) -> Answer:
        """Return an answer as it will be read again, so that the first pass has the same losses."""

        def round_(tensor: Tensor) -> Tensor:
            return tensor.float() if self.layout.kind == "exact" else _half(tensor).float()

        logits: dict[str, Taught] = {}
        for head, found in answer.logits.items():
            if isinstance(found, TopLogits):
                logits[head] = found._replace(values=round_(found.values))
            elif self.layout.form(found.shape[-1]) == "bytes":
                logits[head] = from_bytes(*to_bytes(found))
            else:
                logits[head] = round_(found)
        return Answer(logits, {source: round_(found) for source, found in answer.sources.items()})

    def write(self) -> None:
        """Write what was gathered as one file, and know it from then on."""
        if not self._gathered:
            return
        names = self._gathered[0].keys()
        arrays = {name: np.concatenate([kept[name] for kept in self._gathered]) for name in names}
        content = save(arrays)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        if not path.exists():
            write_whole(path, lambda file: file.write(content))
        self._gathered, self._bytes = [], 0
        self.refresh()

    def _number(self, tensor: Tensor) -> Array:
        exact = self.layout.kind == "exact"
        found: Array = (tensor.float() if exact else _half(tensor)).numpy()
        return found

    def _places_of(self, rows: Rows) -> Array:
        found: Array = self._places[rows.masks * self._instances + rows.indices]
        return found


class _File:
    """One file of answers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> Array:
        found: Array = _opened(self.path)[0].get_tensor("rows")
        return found

    def masked(self, name: str, row: int) -> Array:
        file, masked, _ = _opened(self.path)
        found: Array = file.get_slice(name)[int(masked[row]) : int(masked[row + 1])]
        return found

    def tokens(self, name: str, row: int) -> Array:
        file, _, tokens = _opened(self.path)
        found: Array = file.get_slice(name)[int(tokens[row]) : int(tokens[row + 1])]
        return found


@lru_cache(256)  # open at once: a process may hold a thousand files, and has others
def _opened(path: Path) -> tuple[Any, Array, Array]:
    file: Any = safetensors.safe_open(path, "numpy")
    counts = (file.get_tensor("masked"), file.get_tensor("tokens"))
    masked, tokens = (np.concatenate([[0], np.cumsum(count)]) for count in counts)
    return file, masked, tokens


def _name(source: Source) -> str:
    part, layer = source
    return f"{part}.{layer}"


def _half(tensor: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return tensor.float().clamp(-largest, largest).half()
