"""Checkpoints of a run: `checkpoints/step-N/`, and `latest` that names the newest whole one.

A checkpoint is written under a temporary name and renamed, `latest` is replaced last: what `latest`
names is complete.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lert_ds import distributed
from lert_ds.errors import CheckpointError
from lert_ds.files import fsync_folder, write_whole
from lert_ds.train.engine import Engine

logger = logging.getLogger(__name__)

_PART = ".part"


class Checkpoints:
    """The checkpoints in one run folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Keep the newest `keep` under `folder`; nothing is made before the first save."""
        self.folder = folder
        self._keep = keep

    def save(self, engine: Engine, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint at `step`; all processes must call it."""
        tag = f"step-{step}"
        part = tag + _PART
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.folder / part, ignore_errors=True)
        distributed.barrier()
        engine.save(self.folder, part, {"step": step, **state})
        distributed.barrier()  # the last rank has written before the rename
        if distributed.is_main():
            shutil.rmtree(self.folder / tag, ignore_errors=True)
            (self.folder / part).rename(self.folder / tag)
            fsync_folder(self.folder)
            write_whole(self.folder / "latest", lambda file: file.write(tag.encode()))
            self._remove_old(tag)
        distributed.barrier()

    def newest(self) -> str | None:
        """Return the tag of the newest whole checkpoint, or None where there is none."""
        latest = self.folder / "latest"
        if not latest.is_file():
            return None
        tag = latest.read_text("utf-8").strip()
        if not tag.startswith("step-") or not (self.folder / tag).is_dir():
            raise CheckpointError(
                f"{latest}: it names {tag!r}, which is not there; write the name of another "
                f"checkpoint of {self.folder} into it, or start over with overwrite=true"
            )
        return tag

    def load(self, engine: Engine, tag: str) -> dict[str, Any]:
        """Read a checkpoint into `engine` and return its state; all processes must call it."""
        return engine.load(self.folder, tag)

    def remove(self) -> None:
        """Remove all of them; the main process alone may call it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_old(self, newest: str) -> None:
        tags = sorted(
            (path.name for path in self.folder.glob("step-*") if not path.name.endswith(_PART)),
            key=lambda tag: int(tag.removeprefix("step-")),
        )
        older = [tag for tag in tags if tag != newest]
        for tag in older[: max(len(older) - self._keep + 1, 0)]:
            shutil.rmtree(self.folder / tag, ignore_errors=True)
