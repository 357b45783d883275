"""Several processes in the threads of one, and an engine small enough to see through."""

import copy
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lert_ds import distributed
from lert_ds.train.fragments import WEIGHTS, Fragment, Fragments, Place

WAIT_SECONDS = 30.0


class ThreadPeers:
    """`Peers` for threads that stand in for processes; what they tell goes through JSON too."""

    def __init__(self, folders: list[Path], barrier: threading.Barrier, told: list[Any]) -> None:
        self.alone = False
        self._folders, self._barrier, self._told = folders, barrier, told

    def gather(self, value: Any) -> list[Any]:
        self._told[distributed.rank()] = json.dumps(value)
        self._barrier.wait()
        found = [json.loads(text) for text in self._told]
        self._barrier.wait()
        return found

    def leader(self, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        return self._folders.index(self._folders[distributed.rank()])

    def copy_file(self, path: Path, source: int, receives: bool) -> None:
        content = path.read_bytes().hex() if distributed.rank() == source else None
        content = self.gather(content)[source]
        if receives:
            path.write_bytes(bytes.fromhex(str(content)))


@pytest.fixture
def as_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Call a function in threads, one a folder given, each a rank: (folder, peers) → results.

    Equal folders are a disk that several see.
    """
    here = threading.local()
    monkeypatch.setattr(distributed, "rank", lambda: getattr(here, "rank", 0))

    def run(folders: list[Path], act: Callable[[Path, Any], Any]) -> list[Any]:
        world = len(folders)
        monkeypatch.setattr(distributed, "world_size", lambda: world)
        barrier = threading.Barrier(world, timeout=WAIT_SECONDS)
        told: list[Any] = [None] * world
        results: list[Any] = [None] * world
        errors: list[Exception | None] = [None] * world

        def begin(rank: int) -> None:
            here.rank = rank
            try:
                results[rank] = act(folders[rank], ThreadPeers(folders, barrier, told))
            except Exception as error:  # noqa: BLE001 - told to the test
                errors[rank] = error
                if not isinstance(error, ValueError):  # what all raise together
                    barrier.abort()

        threads = [threading.Thread(target=begin, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [error for error in errors if error is not None]
        found.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
        if found:
            assert len(found) == world, "not all processes raised"
            raise found[0]
        return results

    return run


class StandIn:
    """An engine of one parameter of 12 numbers and its two moments, cut evenly over the ranks."""

    stage, precision = 2, "fp32"

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {
            kind: torch.randn(12, generator=generator)
            for kind in (WEIGHTS, "exp_avg", "exp_avg_sq")
        }
        self.numbers: Mapping[str, float] = {"engine/global_steps": float(seed)}

    def snapshot(self, *, copy: bool) -> tuple[dict[str, Fragment], dict[str, float]]:
        length = 12 // distributed.world_size()
        start = length * distributed.rank()
        tensors = {k: t[start : start + length] for k, t in self.tensors.items()}
        tensors = {k: t.clone() if copy else t for k, t in tensors.items()}
        return {"linear.weight": Fragment(Place(start, (3, 4)), tensors)}, dict(self.numbers)

    def restore(self, fragments: Fragments, numbers: Mapping[str, float]) -> None:
        assert fragments.shapes == {"linear.weight": (3, 4)}
        self.tensors = {
            kind: fragments.read(kind, "linear.weight", 0, 12).clone() for kind in fragments.kinds
        }
        self.numbers = numbers

    def state(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.tensors)


@pytest.fixture
def stand_in() -> type[StandIn]:
    """What `Checkpoints` asks of an engine, without DeepSpeed."""
    return StandIn
