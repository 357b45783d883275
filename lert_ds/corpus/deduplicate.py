"""Sentences to those seen for the first time: hash, sort, compare, in bounded memory.

    sign     each task: its sentences in order      → sorted runs of (hash, sentence number)
    compare  each bucket, a range of the hashes:    all tasks' runs → the sentences to drop
    dropped  each task: what all buckets say of it  → a bitmap of its sentences

The sentence of the earliest task, and in it the earliest, is kept: no matter who compared when.
Hashes have 64 bits: among 400 million sentences (20 GB) any two differ with a chance of 99.6 %.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.files import write_whole

Array = npt.NDArray[Any]

_RUN_SENTENCES = 4_000_000
"""Sentences of a sorted run: 48 MB."""
_COMPARED_SENTENCES = 4_000_000
"""Signatures compared at a time: about 250 MB with what sorting takes."""
_HASHES = 1 << 64
_SPACE = re.compile(r"\s+")


def content_of(sentence: str, kind: str) -> str:
    """Return what makes a sentence the same as another: its text without white space.

    Args:
        sentence: as the annotator `kind` takes it: text, a CoNLL-U block, or a JSON line.
        kind: the annotator.
    """
    if kind == "precomputed":
        return "".join(AnnotatedSentence.from_json(sentence, "sentence").words)
    if kind == "conllu":  # its FORM column; comments hold identities, which differ
        rows = (line.split("\t", 2) for line in sentence.split("\n") if not line.startswith("#"))
        return "".join(row[1] for row in rows if len(row) > 1)
    return _SPACE.sub("", sentence)


def sign(contents: Iterable[str], folder: Path, task: int) -> int:
    """Write the signatures of a task's sentences in sorted runs; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{task:05d}-*.npy"):
        stale.unlink()
    hashes: list[int] = []
    runs = number = 0

    def write_run() -> None:
        nonlocal runs
        run = np.array(hashes, dtype=np.uint64)
        order = np.argsort(run, kind="stable")
        name = f"{task:05d}-{runs:03d}"
        _save(folder / f"{name}.number.npy", (order + (number - len(hashes))).astype(np.uint32))
        _save(folder / f"{name}.hash.npy", run[order])
        runs += 1
        hashes.clear()

    for content in contents:
        digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "big"))
        number += 1
        if len(hashes) == _RUN_SENTENCES:
            write_run()
    write_run()
    return number


def compare(signatures: Path, duplicates: Path, bucket: int, buckets: int) -> int:
    """Write which sentences of one bucket of hashes repeat an earlier one; return how many."""
    duplicates.mkdir(parents=True, exist_ok=True)
    # One file an array: a search in a memory map of records would copy all of it.
    runs = [
        _Run(int(path.name[:5]), np.load(path, "r"), np.load(_numbers_of(path), "r"))
        for path in sorted(signatures.glob("*.hash.npy"))
    ]
    low, high = _HASHES * bucket // buckets, _HASHES * (bucket + 1) // buckets
    found = [_compare_range(runs, *part) for part in _parts(runs, low, high)]
    tasks = np.concatenate([tasks for tasks, _ in found])
    numbers = np.concatenate([numbers for _, numbers in found])
    order = np.argsort(tasks, kind="stable")
    _save(duplicates / f"{bucket:05d}.number.npy", numbers[order])
    _save(duplicates / f"{bucket:05d}.task.npy", tasks[order])
    return len(tasks)


def dropped(duplicates: Path, task: int, sentences: int) -> Array:
    """Return which sentences of a task repeat an earlier one, as bool [sentences]."""
    drop = np.zeros(sentences, dtype=bool)
    for path in sorted(duplicates.glob("*.task.npy")):
        tasks = np.load(path, "r")
        first, last = np.searchsorted(tasks, np.array([task, task + 1], dtype=tasks.dtype))
        drop[np.load(path.with_name(path.name.replace(".task.", ".number.")), "r")[first:last]] = 1
    return drop


class _Run(NamedTuple):
    """A sorted run of a task's signatures."""

    task: int
    hashes: Array
    """uint64, ascending."""
    numbers: Array
    """uint32: the sentence of each in the task."""


def _parts(runs: list[_Run], low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of hashes that together are [low, high) and fit into memory each."""
    inside = sum(end - start for start, end in (_range(run, low, high) for run in runs))
    parts = -(-inside // _COMPARED_SENTENCES) or 1
    for part in range(parts):
        yield low + (high - low) * part // parts, low + (high - low) * (part + 1) // parts


def _range(run: _Run, low: int, high: int) -> tuple[int, int]:
    start = np.searchsorted(run.hashes, np.uint64(low))
    end = len(run.hashes) if high == _HASHES else np.searchsorted(run.hashes, np.uint64(high))
    return int(start), int(end)


def _compare_range(runs: list[_Run], low: int, high: int) -> tuple[Array, Array]:
    """Return task and sentence, both uint32, of each that repeats an earlier one."""
    hashes, tasks, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)], []
    for run in runs:  # in the order of the plan
        start, end = _range(run, low, high)
        hashes.append(run.hashes[start:end])
        tasks.append(np.full(end - start, run.task, dtype=np.uint32))
        numbers.append(run.numbers[start:end])
    of_all = np.concatenate(hashes)
    order = np.argsort(of_all, kind="stable")  # so the earliest comes first among equals
    ordered = of_all[order]
    repeats = order[1:][ordered[1:] == ordered[:-1]]
    return (
        np.concatenate(tasks)[repeats],
        np.concatenate([np.empty(0, np.uint32), *numbers])[repeats],
    )


def _numbers_of(hashes: Path) -> Path:
    return hashes.with_name(hashes.name.replace(".hash.", ".number."))


def _save(path: Path, array: Array) -> None:
    write_whole(path, lambda file: np.save(file, array))
