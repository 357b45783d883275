"""What DeepSpeed leaves on a host besides results: ops half-built, and shared memory.

torch waits without end for the lock of a build, also where the process that took it was killed.
And DeepSpeed's all-reduce on one host's processors maps 66 MiB a process by a name that nothing
removes, not even an orderly end: after some hundred starts the memory of the host is full.
"""

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

import psutil
from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

STALE_LOCK_SECONDS = 300
"""A build takes a minute or two; so old a lock, which no process here holds, is of a dead one."""

SHARED_MEMORY = Path("/dev/shm")


def use_own_programs() -> None:
    """Build ops with the ninja of this environment, whatever PATH the launcher gave.

    Another version hashes commands otherwise: each start would build every op anew, a minute each.
    """
    programs, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, path])


def folder() -> Path:
    """Return where torch builds ops."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return Path(root)


def locks() -> list[Path]:
    """Return the locks of builds: under way, or left by a process that was killed."""
    # With TORCH_EXTENSIONS_DIR the ops are right there, else in a folder a version of Python.
    return sorted({*folder().glob("*/lock"), *folder().glob("*/*/lock")})


def wait_for_builds(poll_seconds: float = 1.0) -> None:
    """Wait for builds of other processes, and remove the locks of dead ones; say so."""
    told = False
    while held := [path for path in locks() if not _removed(path)]:
        if not told:
            logger.warning("%s: waiting for the process that builds this op", held[0].parent)
            told = True
        time.sleep(poll_seconds)


def _removed(lock: Path) -> bool:
    """Remove a lock that is old and that no process of this host has open."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime < STALE_LOCK_SECONDS or _is_open(lock):
            return False
        lock.unlink()
        logger.warning("%s: removed; the process that built there was killed", lock)
    return True


def _is_open(path: Path) -> bool:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(Path(file.path) == path for file in process.open_files()):
                return True
    return False


def free_shared_memory(rank: int) -> None:
    """Remove the name of this process's shared memory; who has it mapped keeps it until its end.

    To be called when all processes have mapped it, by every process. The name is that of
    `csrc/cpu/comm/shm.cpp`.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"
    (SHARED_MEMORY / name).unlink(missing_ok=True)
