"""What memory a host has for a run: its own, that of its control group, swap, shared memory."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import psutil


def memory_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return bytes: what is available, what the control group leaves, swap, shared memory.

    `root` is where /proc/self/cgroup, /sys/fs/cgroup and /dev/shm are looked for.
    """
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    shared = root / "dev/shm"
    size = shutil.disk_usage(shared) if shared.is_dir() else None
    return {
        "total_bytes": memory.total,
        "available_bytes": memory.available,
        "group_left_bytes": group_left(root),
        "swap_free_bytes": swap.free,
        "shared_total_bytes": size.total if size else 0,
        "shared_free_bytes": size.free if size else 0,
    }


def group_left(root: Path) -> int | None:
    """Return the bytes that the control groups above this process still allow, None: no limit.

    Containers and Slurm set such limits; the kernel ends what goes beyond, whatever is free.
    What is cached from disk is given back and so does not count as used.
    """
    left = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if not controllers:
                names = ("memory.max", "memory.current", "inactive_file")
                left += _left(root / "sys/fs/cgroup", place, names)
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                left += _left(root / "sys/fs/cgroup/memory", place, names)
    return min(left, default=None)


def _left(top: Path, place: str, names: tuple[str, str, str]) -> list[int]:
    """Return what each group from `place` up leaves; in a container its own is the top."""
    found = []
    folder = top / place.lstrip("/")
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):
            limit = int((group / names[0]).read_text("utf-8"))  # "max" is no number
            if limit < 2**60:  # version 1 says "none" by a number near 2**63
                used = int((group / names[1]).read_text("utf-8"))
                found.append(max(0, limit - used + _cached(group / "memory.stat", names[2])))
        if group == top:
            break
    return found


def _cached(path: Path, key: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text("utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0
