"""The corpus folder: memory-mapped arrays of packed instances, and the manifest that vouches.

    corpora/wiki/
      manifest.json                 last to be written: a folder that has it is complete
      vocab.txt tokenizer.json …    the tokenizer of its ids
      shards/00000-000.input_ids.npy     uint16 [instances, length]
      shards/00000-000.word_starts.npy   bool   [instances, length]   a token that opens a word
      shards/00000-000.pos.npy  .ner.npy  .dep.npy   uint8 [instances, length]   255 = unknown
      shards/00000-000.json         what the manifest will say of this shard
      held_out/                     another corpus folder: the documents kept for evaluation

Special tokens open no word. A shard's name is its build task and its number within the task, so a
corpus is the same bytes whatever worker wrote which part when.
"""

import copy
import json
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lert_ds.errors import CorpusError, UserError
from lert_ds.files import inside, sha256_of, write_json, write_whole
from lert_ds.labels import TASKS, TagSets

FORMAT = 1
MANIFEST = "manifest.json"
HELD_OUT = "held_out"
ARRAYS: Mapping[str, type[np.generic]] = {
    "input_ids": np.uint16,
    "word_starts": np.bool_,
    **dict.fromkeys(TASKS, np.uint8),
}

OTHER_FILES = 1024
"""Open files that a process has besides a corpus: libraries, sockets, tensors between processes."""

Array = npt.NDArray[Any]


class Instance(NamedTuple):
    """One packed row of a corpus; every array is [length]."""

    input_ids: Array
    """uint16; ends in [PAD] where the row is not full."""
    word_starts: Array
    """bool: the token opens a word; false at special tokens."""
    tags: dict[str, Array]
    """Task to uint8 class, IGNORE_INDEX where unknown."""


class Rows(NamedTuple):
    """Rows of equal length, or of none, one below the other; every array is [rows, length]."""

    input_ids: Array
    """uint16."""
    word_starts: Array
    """bool."""
    tags: dict[str, Array]
    """Task to uint8."""

    @classmethod
    def empty(cls, rows: int, length: int, tasks: Iterable[str] = TASKS) -> "Rows":
        """Return rows that are to be filled."""
        shape = rows, length
        tags = {task: np.empty(shape, ARRAYS[task]) for task in tasks}
        return cls(np.empty(shape, np.uint16), np.empty(shape, np.bool_), tags)

    def row(self, number: int) -> Instance:
        """Return one of them: views."""
        tags = {task: classes[number] for task, classes in self.tags.items()}
        return Instance(self.input_ids[number], self.word_starts[number], tags)


@dataclass(frozen=True)
class Manifest:
    """What a corpus folder says of itself."""

    length: int
    """Tokens an instance."""
    vocabulary_size: int
    tokenizer_sha256: str
    """Hash of vocab.txt: the same ids mean the same pieces."""
    special_ids: dict[str, int]
    """`pad`, `unk`, `cls`, `sep`, `mask` to their ids."""
    tag_sets: dict[str, list[str]]
    instances: int
    shards: list[dict[str, Any]]
    """Records of `write_shard`."""
    counts: dict[str, int]
    """Everything dropped or ignored, by reason."""
    statistics: dict[str, Any]
    config: dict[str, Any]
    """The resolved configuration that built it."""
    versions: dict[str, str]
    format: int = FORMAT


def write_shard(folder: Path, name: str, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Write one shard's arrays under `folder / "shards"` and return its record for the manifest.

    Each file is written whole; `<name>.json`, the record, comes last.

    Raises:
        CorpusError: a token id needs more than 16 bits.
    """
    assert arrays.keys() == ARRAYS.keys(), arrays.keys()
    assert len({np.shape(array) for array in arrays.values()}) == 1
    largest = int(np.max(arrays["input_ids"], initial=0))
    if largest > np.iinfo(np.uint16).max:
        raise CorpusError(
            f"{folder}: token id {largest} needs more than 16 bits; "
            "name a tokenizer of at most 65,536 pieces"
        )
    place = folder / "shards"
    place.mkdir(parents=True, exist_ok=True)
    files = {}
    for array_name, dtype in ARRAYS.items():
        array = np.ascontiguousarray(arrays[array_name], dtype=dtype)
        path = place / f"{name}.{array_name}.npy"
        write_whole(path, lambda file, array=array: np.save(file, array))  # type: ignore[misc]
        files[array_name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    record = {"name": name, "instances": len(arrays["input_ids"]), "files": files}
    write_json(place / f"{name}.json", record)
    return record


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest: from now on the folder is a corpus."""
    write_json(folder / MANIFEST, vars(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a corpus folder.

    Raises:
        CorpusError: no folder, no manifest, or not of this format.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such corpus folder; make one with lert-ds prepare")
    if not path.is_file():
        raise CorpusError(
            f"{folder}: no {MANIFEST}, so it is no finished corpus; run lert-ds prepare again"
        )
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree["format"] != FORMAT:
            raise CorpusError(f"{path}: format {tree['format']}, this version reads {FORMAT}")
        manifest = Manifest(**tree)
        if manifest.instances != sum(record["instances"] for record in manifest.shards):
            raise CorpusError(f"{path}: its shards do not add up to {manifest.instances} instances")
        return manifest
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: not a corpus manifest ({error})") from error


class Corpus:
    """The instances of one or more corpus folders, in order, memory-mapped.

    `corpus[i]` is an `Instance` of views; a fork or a pickle of it costs nothing.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Open `folders`, which must agree on length, tokenizer and tag sets.

        Raises:
            CorpusError: a folder is none, is incomplete, or differs from the first.
        """
        self.folders = [Path(folder) for folder in folders]
        if not self.folders:
            raise CorpusError("corpus = []: name at least one corpus folder")
        self.manifests = [read_manifest(folder) for folder in self.folders]
        self.manifest = self.manifests[0]
        for folder, other in zip(self.folders[1:], self.manifests[1:], strict=True):
            self._check_like_first(folder, other)
        self._shards = [
            (folder, record)
            for folder, manifest in zip(self.folders, self.manifests, strict=True)
            for record in manifest.shards
        ]
        sizes = [record["instances"] for _, record in self._shards]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._maps: dict[int, dict[str, Array]] = {}
        self._new_ids: Array | None = None
        _allow_open_files(len(self._shards) * len(ARRAYS))
        for folder, record in self._shards:
            for path, facts in _files(folder, record):
                _check_size(path, facts)

    def _check_like_first(self, folder: Path, other: Manifest) -> None:
        for fact in ("length", "tokenizer_sha256", "tag_sets"):
            ours, theirs = getattr(self.manifest, fact), getattr(other, fact)
            if ours != theirs:
                raise CorpusError(
                    f"{folder}: its {fact} differs from that of {self.folders[0]}; "
                    "prepare both with the same tokenizer, max_length and tag sets"
                )

    def renumbered(self, new_ids: Array, manifest: Manifest) -> "Corpus":
        """Return this corpus in another vocabulary.

        Args:
            new_ids: uint16 [vocabulary]: what each id becomes.
            manifest: What is then true of it.
        """
        assert len(new_ids) == self.manifest.vocabulary_size, len(new_ids)
        other = copy.copy(self)
        other.manifest, other._maps, other._new_ids = manifest, {}, new_ids
        return other

    @property
    def is_renumbered(self) -> bool:
        """Whether it is read in another vocabulary, where [UNK] may stand for what that lacks."""
        return self._new_ids is not None

    @property
    def tag_sets(self) -> TagSets:
        """The tag sets that the classes refer to."""
        return self.manifest.tag_sets

    @property
    def length(self) -> int:
        """Tokens an instance."""
        return self.manifest.length

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Instance:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        arrays = self._arrays(shard)
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        input_ids = arrays["input_ids"][row]
        return Instance(
            input_ids if self._new_ids is None else self._new_ids[input_ids],
            arrays["word_starts"][row],
            {task: arrays[task][row] for task in TASKS},
        )

    def rows(self, indices: npt.NDArray[np.int64]) -> Rows:
        """Return copies of the instances at `indices`, in that order."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(indices)
        shards = self._ends.searchsorted(indices, side="right")
        places = indices - np.where(shards > 0, self._ends[shards - 1], 0)
        found = Rows.empty(len(indices), self.length)
        input_ids, word_starts, tags = found
        for row, (shard, place) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            arrays = self._arrays(shard)
            input_ids[row] = arrays["input_ids"][place]
            word_starts[row] = arrays["word_starts"][place]
            for task, classes in tags.items():
                classes[row] = arrays[task][place]
        return (
            found if self._new_ids is None else found._replace(input_ids=self._new_ids[input_ids])
        )

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Hash every `parts`-th shard from `part` on (processes share the work).

        Raises:
            CorpusError: names the file that is not what the manifest says.
        """
        for folder, record in self._shards[part::parts]:
            for path, facts in _files(folder, record):
                if sha256_of(path) != facts["sha256"]:
                    raise CorpusError(
                        f"{path}: its content is not what {folder / MANIFEST} says; "
                        "it was changed or damaged: copy or prepare the corpus again"
                    )

    def _arrays(self, shard: int) -> dict[str, Array]:
        if shard not in self._maps:
            folder, record = self._shards[shard]
            shape = (record["instances"], self.length)
            paths = (path for path, _ in _files(folder, record))
            self._maps[shard] = {
                name: _map(path, shape, dtype)
                for (name, dtype), path in zip(ARRAYS.items(), paths, strict=True)
            }
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def _files(folder: Path, record: Mapping[str, Any]) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return path and facts of each of a shard's arrays, in the order of ARRAYS."""
    shards = folder / "shards"
    found: list[tuple[Path, Mapping[str, Any]]] = []
    for array_name in ARRAYS:
        try:
            file_name = f"{record['name']}.{array_name}.npy"
            facts = {key: record["files"][array_name][key] for key in ("bytes", "sha256")}
        except (KeyError, TypeError) as error:
            raise CorpusError(
                f"{folder / MANIFEST}: a shard's record lacks {error}; prepare the corpus again"
            ) from error
        try:
            found.append((inside(shards, file_name), facts))
        except UserError as error:
            raise CorpusError(f"{folder / MANIFEST}: {error}") from error
    return found


def _map(path: Path, shape: tuple[int, int], dtype: type[np.generic]) -> Array:
    """Return the array of a file, mapped; a plain array, whose rows cost less than a memmap's."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{path}: cannot be read ({error}); copy or prepare the corpus again"
        ) from error
    if array.shape != shape or array.dtype != dtype:
        raise CorpusError(
            f"{path}: {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)} "
            "as the manifest says; copy or prepare the corpus again"
        )
    return array


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files where `count` more might not fit.

    Each map holds one; 1,024 is a usual limit, and a corpus of 200 shards would reach it.
    """
    needed = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise CorpusError(
            f"corpus: {count} files are to be open at once, but this machine allows {hard}; "
            "raise the limit (ulimit -Hn) or prepare larger shards"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_size(path: Path, facts: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CorpusError(f"{path}: the shard is missing; copy or prepare the corpus again")
    if (size := path.stat().st_size) != facts["bytes"]:
        raise CorpusError(
            f"{path}: {size} bytes where the manifest says {facts['bytes']}; "
            "it was cut short: copy or prepare the corpus again"
        )
