"""One folder's view of a run's checkpoints: what is whole, what is damaged, what may go.

    checkpoints/
      step-1000/  manifest.json  state.json  rank-00000.safetensors  rank-00001.safetensors
      step-2000/  …
      latest                           names the newest, for people and scripts
      .step-3000.part/                 being written, or left by a process that died

A folder under its own name is complete: it was renamed after its manifest, the last file, was on
the disk. On hosts that share no disk each has a folder with the files of its own processes and the
same manifest. Nothing here talks to another process.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lert_ds.errors import CheckpointError
from lert_ds.files import fsync_folder, sha256_of, write_json, write_whole

MANIFEST = "manifest.json"
STATE = "state.json"
LATEST = "latest"
FORMAT_VERSION = 2
"""Of the files, and of what a run draws from its seed: a run that goes on must draw the same."""

_STEP = "step-"
_PART = ".part"


class Written(NamedTuple):
    """What a manifest keeps of a file."""

    size_bytes: int
    sha256: str


def tag_of(step: int) -> str:
    """Return the name of the checkpoint at a step."""
    return f"{_STEP}{step}"


def step_of(tag: str) -> int:
    """Return the step of a checkpoint's name."""
    return int(tag.removeprefix(_STEP))


def rank_file(rank: int) -> str:
    """Return the name of the file of one process."""
    return f"rank-{rank:05d}.safetensors"


def part_of(folder: Path, tag: str) -> Path:
    """Return where a checkpoint is written before it takes its name."""
    return folder / f".{tag}{_PART}"


def start_part(folder: Path, tag: str) -> Path:
    """Make the empty folder that a checkpoint is written to; what was left there goes."""
    part = part_of(folder, tag)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def publish(folder: Path, tag: str, manifest: Mapping[str, Any]) -> None:
    """Give a written part its manifest and its name, then point `latest` to it.

    The files in it are on the disk already. A crash at any point leaves the part, or the whole.
    """
    part, whole = part_of(folder, tag), folder / tag
    write_json(part / MANIFEST, manifest)
    shutil.rmtree(whole, ignore_errors=True)  # damaged, else the run would have gone on from it
    part.rename(whole)
    fsync_folder(folder)
    write_whole(folder / LATEST, lambda file: file.write(tag.encode()))


def tags(folder: Path) -> list[str]:
    """Return the names of the complete checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if _is_tag(path.name) and path.is_dir()]
    return sorted(names, key=step_of, reverse=True)


def _is_tag(name: str) -> bool:
    return name.startswith(_STEP) and name.removeprefix(_STEP).isdecimal()


def read_manifest(folder: Path, tag: str) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        CheckpointError: it is missing, damaged, of a newer format, or names a file elsewhere.
    """
    path = folder / tag / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version, files = manifest["format_version"], manifest["files"]
        sound = all(
            name == Path(name).name
            and name not in ("", "..")
            and isinstance(entry["size_bytes"], int)
            and isinstance(entry["sha256"], str)
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error!r})") from error
    if version != FORMAT_VERSION or not sound or STATE not in files:
        raise CheckpointError(
            f"{path}: format {version}, which this version (format {FORMAT_VERSION}) cannot read"
            if version != FORMAT_VERSION
            else f"{path}: damaged: it names no file of this checkpoint"
        )
    return dict(manifest)


def present(folder: Path, tag: str, manifest: Mapping[str, Any]) -> list[str]:
    """Return which files of a checkpoint this folder has, whole or not."""
    return [name for name in manifest["files"] if (folder / tag / name).is_file()]


def problem(path: Path, entry: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a file that a manifest describes, None where it is sound."""
    size = path.stat().st_size
    if size != entry["size_bytes"]:
        return f"{path.name} has {size} bytes, not {entry['size_bytes']}"
    if sha256_of(path) != entry["sha256"]:
        return f"{path.name} is damaged: its SHA-256 is not the manifest's"
    return None


def make_manifest(files: Mapping[str, Written], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a checkpoint: its files, and `facts` about it."""
    listed = {name: files[name]._asdict() for name in sorted(files)}
    return {"format_version": FORMAT_VERSION, **facts, "files": listed}


def write_state(part: Path, state: Mapping[str, Any]) -> Written:
    """Write what is no tensor, and return size and hash."""
    path = part / STATE
    write_json(path, state)
    return Written(path.stat().st_size, sha256_of(path))


def read_state(folder: Path, tag: str) -> dict[str, Any]:
    """Return what `write_state` wrote; the caller has verified the file."""
    return dict(json.loads((folder / tag / STATE).read_text("utf-8")))


def remove_old(folder: Path, keep: int, keep_every: int) -> None:
    """Remove all but the newest `keep`, those at multiples of `keep_every`, and dead parts."""
    for tag in tags(folder)[keep:]:
        if not keep_every or step_of(tag) % keep_every:
            _remove(folder, tag)
    remove_parts(folder)


def remove_parts(folder: Path) -> None:
    """Remove what was being written, or removed, by a process that died."""
    for part in folder.glob(f".*{_PART}"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _remove(folder: Path, tag: str) -> None:
    """Remove a checkpoint so that no half of it keeps the name."""
    dying = part_of(folder, tag)
    (folder / tag).rename(dying)
    shutil.rmtree(dying, ignore_errors=True)
