"""Programs that are built on a host at their first use, and what DeepSpeed leaves there besides.

torch waits without end for the lock of a build, also where the process that took it was killed.
And DeepSpeed's all-reduce on one host's processors maps 66 MiB a process by a name that nothing
removes, not even an orderly end: after some hundred starts the memory of the host is full.
"""

import contextlib
import hashlib
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch.utils import cpp_extension

from lert_ds.machine import processor_features

logger = logging.getLogger(__name__)

STALE_LOCK_SECONDS = 300
"""A build takes a minute or two; so old a lock, which no process here holds, is of a dead one."""

SHARED_MEMORY = Path("/dev/shm")


def build(source: Path, flags: Sequence[str], instead: str) -> Path | None:
    """Build a C++ file for this processor where it is not built yet, and load it.

    What is built is kept by the hash of its source and the headers beside it, flags, torch and
    processor, so that a home folder that machines of several kinds share holds one for each. A
    C++ compiler and ninja are needed, as for DeepSpeed's own ops.

    Args:
        source: The file; `LERT_DS_LIBRARY` in it is the name of the library.
        flags: Of the compiler.
        instead: Of the warning where it fails: what is then done without it.

    Returns:
        The library; None where it could not be built.
    """
    native = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    texts = [path.read_text("utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = [*texts, *flags, torch.__version__, *processor_features()]
    digest = hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]
    name = f"lert_ds_{source.stem}_{digest}"
    use_own_programs()
    wait_for_builds()
    try:
        path = cpp_extension.load(
            name,
            [str(source)],
            extra_cflags=[*flags, native, f"-DLERT_DS_LIBRARY={name}"],
            extra_ldflags=["-fopenmp"] if "-fopenmp" in flags else [],
            is_python_module=False,
        )
    except (OSError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()
        logger.warning(
            "%s: %s could not be built, so %s: %s",
            source.stem.replace("_", " "), source.name, instead,
            reason[0] if reason else type(error).__name__,
        )  # fmt: skip
        return None
    return Path(path)


def use_own_programs() -> None:
    """Build ops with the ninja of this environment, whatever PATH the launcher gave.

    Another version hashes commands otherwise: each start would build every op anew, a minute each.
    """
    programs, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, path])


def name_plain_architectures() -> None:
    """Take the letters from `TORCH_CUDA_ARCH_LIST=9.0a`, as images for Hopper have it.

    DeepSpeed 0.19 cannot read them, and none of its ops needs an instruction that they stand for.
    """
    name = "TORCH_CUDA_ARCH_LIST"
    if (listed := os.environ.get(name)) is not None:
        os.environ[name] = re.sub(r"(\d+\.\d+)[a-z]", r"\1", listed)


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
