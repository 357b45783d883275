"""Files that are whole or absent: hash, fsync, rename; names that stay in their folder.

What is being written stands beside its place as `.NAME.MACHINE.PROCESS.part`. A process that is
killed leaves it; `sweep` removes those of processes that are gone, and of no other.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lert_ds.errors import ConfigError, UserError
from lert_ds.redaction import redact_tree

_PART = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})\.(?P<process>\d+)\.(?P<kind>part|old)"
)
_FORGOTTEN_SECONDS = 86_400
"""A part of another machine is nobody's when nothing has been written to it for a day."""
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: object, *, links: bool = True) -> Path:
    """Return `folder / name` for a name that a file gives: a manifest, an index, `latest`.

    Args:
        folder: Where the name has to stay.
        name: What stands in the file; anything but a relative path downwards is refused.
        links: False also refuses symbolic links that lead out of the folder. They are usual where
            files are kept once and named often, as in the cache of the Hugging Face hub.

    Raises:
        UserError: the name leaves the folder, or is none.
    """
    if isinstance(name, str) and name and "\0" not in name:
        parts = PurePosixPath(name.replace("\\", "/"))
        if not parts.is_absolute() and parts.parts and ".." not in parts.parts:
            path = folder / name
            if links or path.resolve().is_relative_to(folder.resolve()):
                return path
    raise UserError(
        f"{folder}: a file in it names {name!r}, which leaves the folder; "
        "copy the folder again from a source that you trust"
    )


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` on a temporary file beside `path`, fsync it and rename it to `path`.

    A reader sees the old file or the new one, never half of one, a crash or a full disk included.
    """
    temporary = _beside(path, "part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # a disk that is full: say of which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_json(path: Path, tree: Any, *, exact: bool = False) -> None:
    """Write `tree` as indented JSON, whole or not at all; tokens and passwords do not get there.

    `exact` writes it as it is: for what is read again to be acted on, in folders of work.
    """
    text = json.dumps(tree if exact else redact_tree(tree), indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


@contextlib.contextmanager
def write_whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that takes its place when all in it is written.

    What was there before goes; where writing fails, or is killed, it stays as it was. Files get the
    permissions that the user's umask gives, whoever wrote them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, folder.name)
    temporary = _beside(folder, "part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        use_umask(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            else:
                fsync_folder(path)
        fsync_folder(temporary)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Move the folder `new`, on the same disk, to `place`; the folder that is there goes.

    Where the file system can exchange two names (ext4, xfs, btrfs, tmpfs), one or the other stands
    there at any moment; elsewhere `sweep` puts the old one back after a kill between two renames.
    """
    if not place.exists():
        new.rename(place)
    elif exchange(new, place):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = _beside(place, "old")
        place.replace(old)
        new.replace(place)
        shutil.rmtree(old, ignore_errors=True)
    fsync_folder(place.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder; a kill leaves it whole or, under a name that `sweep` knows, a part of it."""
    temporary = _beside(folder, "part")
    folder.rename(temporary)
    fsync_folder(folder.parent)
    shutil.rmtree(temporary)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names of a folder at once; return whether the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)


def use_umask(folder: Path) -> None:
    """Give all files below `folder` the permissions of a new file: safetensors makes them 0600."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~umask())


def umask() -> int:
    """Return this process's umask."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)  # for a moment another thread's files are private, not public
    os.umask(mask)
    return mask


def sweep(folder: Path, name: str | None = None, *, deep: bool = False) -> list[Path]:
    """Remove what dead processes left half-written in `folder`, and return it.

    A folder that a kill has taken from its place while it was replaced is put back. Parts of live
    processes stay, and those of other machines that were written to within a day.

    Args:
        folder: Where results lie.
        name: Only parts of this file or folder.
        deep: In the folders below it too.
    """
    swept = []
    for path in list(folder.rglob(".*") if deep else folder.glob(".*")):
        match = _PART.fullmatch(path.name)
        if match is None or name not in (None, match["name"]) or not _is_dead(path, match):
            continue
        place = path.with_name(match["name"])
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if match["kind"] == "old" and not place.exists():
                path.rename(place)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            swept.append(path)
    return swept


def _is_dead(path: Path, match: re.Match[str]) -> bool:
    if match["machine"] == _machine():
        return not Path(f"/proc/{match['process']}").exists()
    try:
        newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    except FileNotFoundError:
        return False  # it changes just now
    return time.time() - newest > _FORGOTTEN_SECONDS


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.{kind}")


@cache
def _machine() -> str:
    """Return where this process's number means something: host and namespace, as 8 digits."""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
        described = f"{socket.gethostname()} {namespace}".encode()
        return hashlib.blake2b(described, digest_size=4).hexdigest()
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_unwritable(path: Path, key: str) -> None:
    """Refuse a file or folder that could not be written, before the work that it is to hold.

    Raises:
        ConfigError: names `key` and what is in the way.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if place != path.absolute() and not place.is_dir():
        raise ConfigError(f"{key} = {path}: {place} is a file; name another place")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{key} = {path}: {place} cannot be written to; name another place")


def refuse_finished(folder: Path, result: str, overwrite: bool) -> None:
    """Refuse to write over the finished result `folder / result` unless `overwrite`.

    Raises:
        ConfigError: the result is there, or `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output = {folder}: it is a file; name a folder")
    refuse_unwritable(folder, "output")
    if (folder / result).exists() and not overwrite:
        raise ConfigError(
            f"output = {folder}: it holds a finished result ({result}); "
            "name another folder or say overwrite=true"
        )
