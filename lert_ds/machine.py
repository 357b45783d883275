"""The machine: what figures were measured on, and what it multiplies fast."""

import ctypes
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def description(packages: Iterable[str] = ()) -> dict[str, str | int | None]:
    """Return the processor, its cores, and the versions of Python and of `packages`.

    `usable_cores` are those that this process may run on: fewer under taskset or in a container.
    """
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it takes next, as a GPU's allocator does.

    Else glibc gives each large tensor back to the system and takes it again at the next step, a
    page at a time, zeroed: 12 % of a step of LERT-small in bf16. Other C libraries are left as they
    are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**26)


def multiplies_bf16(device: "torch.device") -> bool:
    """Return whether the machine multiplies bf16 matrices itself, and so faster than fp32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def sums_of_bytes_overflow() -> bool:
    """Return whether the processor adds two products of bytes in 16 bits: x86 without VNNI."""
    import torch

    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not torch.cpu._is_vnni_supported()


def processor_features() -> tuple[str, ...]:
    """Return the processor's name and instruction sets: what a program built for it depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    wanted = ("flags", "Features")
    found = next((line for line in lines if line.startswith(wanted)), "")
    return (platform.machine(), _processor(), " ".join(sorted(found.partition(":")[2].split())))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
