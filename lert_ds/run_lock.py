"""One run at a time in a run folder, and whose it is."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lert_ds.errors import ConfigError

logger = logging.getLogger(__name__)

FINISHED = "model/config.json"
"""What a finished run folder holds."""

LOCK = ".lock"
"""File in a run folder that its run holds locked; it tells which process that is."""


class Holder(NamedTuple):
    """The process that uses a run folder; of the processes of a run, the main one of its host."""

    process: int
    host: str
    since: str

    @property
    def is_here(self) -> bool:
        """Whether it runs on this host."""
        return self.host == socket.gethostname()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold `folder`, which exists, against other runs; a process that dies lets go of it.

    Where the file system has no locks there is no guard.

    Raises:
        ConfigError: another process holds it; the message says which.
    """
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = _read(path)
            whose = f"process {other.process} of {other.host}" if other else "unknown"
            raise ConfigError(
                f"output = {folder}: a run is at work there ({whose}); wait for it or end it, or "
                "name another folder"
            ) from error
        except OSError as error:
            logger.warning("%s: cannot be locked (%s); start no second run there", path, error)
        file.truncate(0)
        file.write(json.dumps(Holder(os.getpid(), socket.gethostname(), time.ctime())._asdict()))
        file.flush()
        yield


def holder(folder: Path) -> Holder | None:
    """Return the process that holds `folder` now, None where nobody does."""
    path = folder / LOCK
    with contextlib.suppress(OSError), path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(path)
    return None


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, OSError):
        return None
