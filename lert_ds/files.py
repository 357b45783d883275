"""Files that are whole or absent: hash, fsync, rename; and the check before a folder is written."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lert_ds.errors import ConfigError


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` on a temporary file beside `path`, fsync it and rename it to `path`.

    A reader sees the old file or the new one, never half of one, a crash or a full disk included.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` as indented JSON, whole or not at all."""
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


@contextlib.contextmanager
def write_whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that takes its place when all in it is written.

    What was there before goes; where writing fails it stays as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~mask)  # safetensors writes files that others may not read
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            else:
                fsync_folder(path)
        fsync_folder(temporary)
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
        fsync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
