"""Saving and loading checkpoints together: what each process does, and what all agree on.

    start    every process copies its share of the weights and of the optimizer to the host, and a
             thread of it writes them to `.step-N.part/`, flushes and hashes them; training goes on
    finish   all tell their files; one process a folder writes the manifest, renames the folder and
             removes old checkpoints              (checkpoint_folder.py: what is on the disk)
    newest   all agree on the newest whole one    (checkpoint_search.py)
    load     every process reads its stretches from the files

The files hold stretches of named parameters (fragments.py), so another number of processes, ZeRO
stage or precision reads them as well as the one that wrote them.
"""

import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lert_ds import distributed
from lert_ds.errors import CheckpointError
from lert_ds.train import checkpoint_folder as layout
from lert_ds.train.checkpoint_search import CheckpointSearch, Found
from lert_ds.train.engine import Engine
from lert_ds.train.fragments import Fragment, Fragments, write
from lert_ds.train.peers import Peers

logger = logging.getLogger(__name__)


class SaveError(CheckpointError):
    """A checkpoint could not be written; the older ones are as they were."""


class _Writer(threading.Thread):
    """Writes the fragments of this process while training goes on."""

    def __init__(self, path: Path, fragments: Mapping[str, Fragment]) -> None:
        super().__init__(name="checkpoint writer", daemon=True)
        self._path, self._fragments = path, fragments
        self.written: dict[str, layout.Written] = {}
        self.error: str | None = None

    def run(self) -> None:
        try:
            self.written = {self._path.name: write(self._path, self._fragments)}
        except Exception as error:  # noqa: BLE001 - told by `finish`, on every process
            self.error = _told(error)
        self._fragments = {}  # the copy is as large as the share: let it go at once


@dataclass(frozen=True)
class _UnderWay:
    """A checkpoint that is being written."""

    tag: str
    facts: dict[str, Any]
    state_file: dict[str, layout.Written]
    """The state's file, on the processes that wrote it."""
    writer: _Writer


class Checkpoints:
    """The checkpoints in one run folder, of all processes of a training."""

    def __init__(
        self, folder: Path, peers: Peers, *, keep: int, keep_every: int = 0, background: bool = True
    ) -> None:
        """Look at `folder`, which is made; all processes must do so together.

        Args:
            folder: `checkpoints` of the run folder; shared by the hosts, or one on each.
            peers: The processes.
            keep: How many of the newest stay.
            keep_every: Those at multiples of this step stay too; 0: none.
            background: Write while training goes on, from a copy on the host.
        """
        self.folder = folder
        self._peers, self._keep, self._keep_every = peers, keep, keep_every
        self._background = background
        self._leaders: list[int] = peers.gather(peers.leader(folder))
        self._leader = self._leaders[distributed.rank()]
        self._under_way: _UnderWay | None = None

    @property
    def under_way(self) -> bool:
        """Whether a checkpoint was started and not finished; the same on all processes."""
        return self._under_way is not None

    @property
    def writing(self) -> bool:
        """Whether this process still writes."""
        return self._under_way is not None and self._under_way.writer.is_alive()

    def start(self, engine: Engine, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; all processes must call it, with no other under way.

        Raises:
            SaveError: the folder cannot be written to, or has too little room; on all processes.
        """
        assert self._under_way is None
        tag = layout.tag_of(step)
        fragments, numbers = engine.snapshot(copy=self._background)
        need = sum(t.nbytes for fragment in fragments.values() for t in fragment.tensors.values())
        told = self._peers.gather([need, numbers])
        room = sum(
            n for (n, _), leader in zip(told, self._leaders, strict=True) if leader == self._leader
        )
        state = {"step": step, **state, "numbers": told[0][1]}
        state_file: dict[str, layout.Written] = {}

        def prepare() -> None:
            part = layout.start_part(self.folder, tag)
            if (free := shutil.disk_usage(self.folder).free) < room:
                raise OSError(f"{room:,} bytes are needed and {free:,} are free")
            state_file[layout.STATE] = layout.write_state(part, state)

        self._together(tag, prepare)
        path = layout.part_of(self.folder, tag) / layout.rank_file(distributed.rank())
        facts = {
            "step": step,
            "processes": distributed.world_size(),
            "zero_stage": engine.stage,
            "precision": engine.precision,
        }
        self._under_way = _UnderWay(tag, facts, state_file, _Writer(path, fragments))
        self._under_way.writer.start()

    def finish(self) -> str:
        """Wait for what was started and publish it; all processes must call it. Return its name.

        Raises:
            SaveError: a process could not write; the older checkpoints are as they were.
        """
        assert self._under_way is not None
        saved, self._under_way = self._under_way, None
        saved.writer.join()
        own = {**saved.state_file, **saved.writer.written}
        told = self._peers.gather([own, saved.writer.error])
        self._raise_for([error for _, error in told], saved.tag)
        files = {
            name: layout.Written(*entry) for entries, _ in told for name, entry in entries.items()
        }
        manifest = layout.make_manifest(files, saved.facts)

        self._together(saved.tag, lambda: layout.publish(self.folder, saved.tag, manifest))
        # Not before the others' folders have the new one: each has a part of it alone.
        if self._leader == distributed.rank():
            try:
                layout.remove_old(self.folder, self._keep, self._keep_every)
            except OSError as error:  # the new one is there all the same
                logger.warning("%s: old checkpoints cannot be removed: %s", self.folder, error)
        return saved.tag

    def newest(self, wanted: str | None = None) -> Found | None:
        """Return the newest whole checkpoint, or `wanted`; all processes must call it.

        Raises:
            CheckpointError: there are checkpoints and none is whole, or `wanted` is not.
        """
        return CheckpointSearch(self.folder, self._peers, self._leaders).newest(wanted)

    def load(self, engine: Engine, tag: str) -> dict[str, Any]:
        """Read a verified checkpoint into `engine` and return its state; all must call it.

        Raises:
            CheckpointError: it is of another model.
        """
        manifest = layout.read_manifest(self.folder, tag)
        paths = [self.folder / tag / name for name in manifest["files"] if name != layout.STATE]
        state = layout.read_state(self.folder, tag)
        engine.restore(Fragments(paths), state.pop("numbers"))
        return state

    def _together(self, tag: str, act: Callable[[], None]) -> None:
        """Let one process a folder act; all learn where one of them could not."""
        error: str | None = None
        if self._leader == distributed.rank():
            try:
                act()
            except OSError as problem:
                error = _told(problem)
        self._raise_for(self._peers.gather(error), tag)

    def _raise_for(self, errors: Sequence[str | None], tag: str) -> None:
        found = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error is not None]
        if not found:
            return
        if self._leader == distributed.rank():
            shutil.rmtree(layout.part_of(self.folder, tag), ignore_errors=True)
        raise SaveError(f"{self.folder / tag} could not be written: {'; '.join(found)}")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
