"""Which checkpoint a run goes on from: all processes look, verify and agree.

    each folder        which checkpoints, which of their files        (one process a folder looks)
    each checkpoint    the newest first: equal manifests, every file somewhere whole, by its hash
    the first whole    folders that lack a file get a copy of it; newer checkpoints are set aside

Hosts that share no disk each have the files of their own processes; a host that is new has none.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lert_ds import distributed
from lert_ds.errors import CheckpointError
from lert_ds.files import sha256_of
from lert_ds.train import checkpoint_folder as layout
from lert_ds.train.peers import Peers

logger = logging.getLogger(__name__)

SKIPPED = "skipped-"
"""Opens the name of a checkpoint that was passed over: nothing reads it, nobody loses it."""


class Found(NamedTuple):
    """A checkpoint to go on from."""

    tag: str
    skipped: tuple[str, ...]
    """What is wrong with each newer one, in a line that opens with its name."""


class CheckpointSearch:
    """A search through the folders of all hosts; all processes must make each call together."""

    def __init__(self, folder: Path, peers: Peers, leaders: Sequence[int]) -> None:
        """Search `folder`; `leaders`: of each rank, the process that acts for its folder."""
        self._folder, self._peers, self._leaders = folder, peers, leaders
        self._leads = leaders[distributed.rank()] == distributed.rank()

    def newest(self, wanted: str | None = None) -> Found | None:
        """Return the newest whole checkpoint, or `wanted`; None where there is none at all.

        Those that are newer are set aside under another name: the run goes on without them.

        Raises:
            CheckpointError: there are checkpoints and none is whole, or `wanted` is not.
        """
        seen: list[dict[str, Any]] = self._peers.gather(self._inventory())
        names = sorted({tag for view in seen for tag in view}, key=layout.step_of, reverse=True)
        reasons: list[str] = []
        for tag in names if wanted is None else [wanted]:
            reason = self._verify(tag, [view.get(tag) for view in seen])
            if reason is None:
                newer = names[: names.index(tag)]
                self._set_aside(newer)
                return Found(tag, tuple(reasons))
            reasons.append(f"{tag}: {reason}")
        if reasons:
            raise CheckpointError(
                f"{self._folder}: no checkpoint to go on from: {'; '.join(reasons)}. Put a whole "
                "one there, or start over with overwrite=true"
            )
        return None

    def _inventory(self) -> dict[str, Any]:
        """Return what this process's folder holds: checkpoint to its manifest's hash and files.

        What a process that died was writing is removed.
        """
        if not self._leads:
            return {}
        layout.remove_parts(self._folder)
        found: dict[str, Any] = {}
        for tag in layout.tags(self._folder):
            try:
                manifest = layout.read_manifest(self._folder, tag)
            except CheckpointError as error:
                found[tag] = {"problem": str(error)}
                continue
            found[tag] = {
                "manifest": sha256_of(self._folder / tag / layout.MANIFEST),
                "files": layout.present(self._folder, tag, manifest),
            }
        return found

    def _verify(self, tag: str, views: Sequence[dict[str, Any] | None]) -> str | None:
        """Return what is wrong with a checkpoint, None where it is whole; files are copied then.

        `views`: of each rank's folder, as `_inventory` gives it.
        """
        there = [view for view in views if view is not None]
        if not there:
            return "it is not there"
        for view in there:
            if "problem" in view:
                return str(view["problem"])
        if len({view["manifest"] for view in there}) > 1:
            return "its manifests differ between the hosts"
        leader = self._leaders[distributed.rank()]
        problems: dict[str, str] = {}
        if views[leader] is not None:
            manifest = layout.read_manifest(self._folder, tag)
            mine = [rank for rank, other in enumerate(self._leaders) if other == leader]
            share = list(manifest["files"])[mine.index(distributed.rank()) :: len(mine)]
            for name in share:  # the processes of a folder share the hashing
                path = self._folder / tag / name
                if path.is_file() and (found := layout.problem(path, manifest["files"][name])):
                    problems[name] = found
        return self._complete(tag, views, self._peers.gather(problems))

    def _complete(
        self, tag: str, views: Sequence[dict[str, Any] | None], told: Sequence[dict[str, str]]
    ) -> str | None:
        """Give every folder the files that it lacks from one that has them whole."""
        holder = next(rank for rank, view in enumerate(views) if view is not None)
        manifest = self._peers.gather(
            layout.read_manifest(self._folder, tag) if holder == distributed.rank() else None
        )[holder]
        leaders = sorted(set(self._leaders))
        bad = {
            (self._leaders[rank], name): reason
            for rank, problems in enumerate(told)
            for name, reason in problems.items()
        }
        copies: list[tuple[str, int, list[int]]] = []
        for name in manifest["files"]:
            sound = [
                rank
                for rank in leaders
                if (view := views[rank]) and name in view["files"] and (rank, name) not in bad
            ]
            if not sound:
                damaged = [reason for (_, other), reason in bad.items() if other == name]
                return damaged[0] if damaged else f"{name} is missing"
            copies.append((name, sound[0], [rank for rank in leaders if rank not in sound]))
        needed = [copy for copy in copies if copy[2]]
        if not needed:
            return None
        logger.info("%s: copying %d files to the hosts that lack them", tag, len(needed))
        whole = self._folder / tag
        new = self._leads and not whole.is_dir()
        target = layout.start_part(self._folder, tag) if new else whole
        for name, source, receivers in needed:
            receives = distributed.rank() in receivers
            self._peers.copy_file((target if receives else whole) / name, source, receives)
        if new:
            layout.publish(self._folder, tag, manifest)
        self._peers.gather(None)  # nobody reads before the last has written
        return None

    def _set_aside(self, tags: Sequence[str]) -> None:
        """Move checkpoints out of the way, one process a folder."""
        for tag in tags if self._leads else ():
            if (self._folder / tag).is_dir():
                aside = self._folder / f"{SKIPPED}{tag}"
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / tag).rename(aside)
