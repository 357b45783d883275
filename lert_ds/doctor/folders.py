"""What a host knows of the folders that a run reads and writes."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lert_ds.data.shards import MANIFEST, Corpus
from lert_ds.errors import CorpusError
from lert_ds.machine import usable_cores

MARK_PREFIX = ".lert-ds-doctor-"
SEEN_WITHIN_SECONDS = 3.0
"""A network file system may show a new file this late."""


def output_facts(path: str) -> dict[str, Any]:
    """Return what there is where a run would write: the folder, or the nearest that exists."""
    output = Path(path).absolute()
    place = nearest(output)
    facts: dict[str, Any] = {
        "path": str(output),
        "place": str(place),
        "finished": (output / "model" / "config.json").is_file(),
        "checkpoint_bytes": _size_of(output / "checkpoints"),
        "is_file": not place.is_dir(),
    }
    return facts if facts["is_file"] else facts | space_facts(place)


def space_facts(folder: Path) -> dict[str, Any]:
    """Return the free space of a folder that exists, and why it cannot be written, or None."""
    return {"free_bytes": shutil.disk_usage(folder).free, "refused": _try_to_write(folder)}


def nearest(path: Path) -> Path:
    """Return `path`, or the nearest above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def write_mark(path: str) -> dict[str, Any]:
    """Write a file beside where a run would write, for the others to look for."""
    mark = nearest(Path(path).absolute()) / f"{MARK_PREFIX}{secrets.token_hex(8)}"
    mark.write_text("seen by every host that shares this folder\n", "utf-8")
    return {"path": str(mark)}


def see_mark(path: str) -> dict[str, Any]:
    """Say whether a file that another host wrote is there."""
    end = time.monotonic() + SEEN_WITHIN_SECONDS
    while not (seen := Path(path).is_file()) and time.monotonic() < end:
        time.sleep(0.2)
    return {"seen": seen}


def remove_mark(path: str) -> dict[str, Any]:
    """Remove what `write_mark` wrote, and nothing else."""
    if Path(path).name.startswith(MARK_PREFIX):
        Path(path).unlink(missing_ok=True)
    return {}


def missing(paths: Sequence[str]) -> dict[str, Any]:
    """Return those of `paths` that are not there."""
    return {"missing": [path for path in paths if not Path(path).exists()]}


def corpus_facts(folders: Sequence[str], seconds: float) -> dict[str, Any]:
    """Return the hash of a corpus's manifests and whether its shards are what they say.

    Every shard is hashed, as far as two thirds of `seconds` allow; the sizes of all are checked.
    """
    end = time.monotonic() + seconds * 2 / 3
    try:
        corpus = Corpus([Path(folder) for folder in folders])
        shards = sum(len(manifest.shards) for manifest in corpus.manifests)

        def verify(part: int) -> bool:
            if time.monotonic() > end:
                return False
            corpus.verify(part, shards)
            return True

        with ThreadPoolExecutor(usable_cores()) as pool:
            verified = sum(pool.map(verify, range(shards)))
    except CorpusError as error:
        return {"wrong": str(error)}
    content = b"".join((folder / MANIFEST).read_bytes() for folder in corpus.folders)
    return {
        "manifest": hashlib.sha256(content).hexdigest(),
        "instances": len(corpus),
        "shards": shards,
        "verified": verified,
    }


def temporary_facts() -> dict[str, Any]:
    """Return what there is where libraries put temporary files."""
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:  # none of the usual places can be written
        return {"path": os.environ.get("TMPDIR", "TMPDIR"), "free_bytes": 0, "refused": str(error)}
    named = os.environ.get("TMPDIR")
    return {"path": str(folder), "named": named, **space_facts(folder)}


def _try_to_write(folder: Path) -> str | None:
    # Only writing tells: root may write anywhere by its permissions, and not on a read-only disk.
    mark = folder / f"{MARK_PREFIX}{secrets.token_hex(8)}"
    try:
        try:
            with mark.open("wb") as file:
                file.write(b"0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or errno.errorcode.get(error.errno or 0, str(error))
    return None


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
