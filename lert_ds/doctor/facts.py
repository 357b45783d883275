"""What one host knows of itself, as plain JSON; `lert-ds doctor --facts` prints it.

Gathered on every host of a run and compared in checks of software, network, storage and memory.
Nothing here judges, and nothing is told of the environment but the names in `SHOWN`.
"""

import hashlib
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

import lert_ds
from lert_ds import machine
from lert_ds.doctor.folders import nearest, space_facts, temporary_facts
from lert_ds.doctor.memory import memory_facts
from lert_ds.doctor.network import network_facts

PACKAGES = ("lert-ds", "torch", "deepspeed", "transformers", "numpy")
"""What must be the same everywhere."""

SHOWN = (
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "GLOO_SOCKET_IFNAME",
    "HF_HUB_OFFLINE",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "TORCH_EXTENSIONS_DIR",
)
"""The variables that are told; any other might hold a secret."""

TOOLS = ("ninja", "nvcc", "pdsh", "ssh")

OPS = {
    "fused_adam": "deepspeed/ops/adam/fused_adam_op",
    "cpu_adam": "deepspeed/ops/adam/cpu_adam_op",
    "cpu_lion": "deepspeed/ops/lion/cpu_lion_op",
    "deepspeed_shm_comm": "deepspeed/ops/comm/deepspeed_shm_comm_op",
    "async_io": "deepspeed/ops/aio/async_io_op",
}
"""DeepSpeed's ops that a training may load, and where an installation that built them has them."""


def facts() -> dict[str, Any]:
    """Return everything that a host knows of itself before it hears of a run."""
    return {
        "interpreter": sys.executable,
        "folder": os.getcwd(),  # noqa: PTH109 - as the launcher has it
        "versions": _versions(),
        "processor": {"name": _processor(), "cores": machine.usable_cores()},
        "accelerator": accelerator(),
        "tools": {name: shutil.which(name) for name in TOOLS} | {"c++": _compiler()},
        "python_headers": Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        "cuda_compiler": _cuda_compiler(),
        "ops": _ops(),
        "memory": memory_facts(),
        "limits": _limits(),
        "environment": {name: os.environ[name] for name in SHOWN if name in os.environ},
        "network": network_facts(),
        "temporary": temporary_facts(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    top = Path(lert_ds.__file__).parents[1]
    commit = _output(["git", "-C", str(top), "rev-parse", "--short=12", "HEAD"])
    tracked = commit and _output(["git", "-C", str(top), "ls-files", "lert_ds/__init__.py"])
    if tracked:
        found["commit"] = commit
    # A change that is not committed has no number; two copies that differ are told apart by this.
    found["source"] = _hash_of(
        top, (p for n in ("lert_ds", "distill", "prune") for p in sorted((top / n).rglob("*.py")))
    )
    return found


def _hash_of(top: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(top)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    return str(machine.description()["cpu"])


def accelerator() -> dict[str, Any]:
    """Return the accelerator that the trainer would take, and its devices.

    As in train/engine.py: CUDA where a device answers and DS_ACCELERATOR names nothing else.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"name": "none", "devices": [], "problem": f"torch cannot be imported: {error}"}
    chosen = os.environ.get("DS_ACCELERATOR")
    cuda = torch.cuda.is_available()
    if chosen not in (None, "cuda") or not cuda:
        there = [Path(f"/dev/nvidia{number}") for number in range(16)]
        count = sum(path.exists() for path in there)
        problem = (
            f"{count} devices are there, but torch {torch.__version__} sees none of them"
            if count and not cuda and chosen in (None, "cuda")
            else None
        )
        return {"name": chosen or "cpu", "devices": [], "problem": problem, "cuda": None}
    devices = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        devices.append({"name": name, "free_bytes": free, "total_bytes": total})
    return {"name": "cuda", "devices": devices, "problem": None, "cuda": torch.version.cuda}


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++").split()[0])


def _cuda_compiler() -> str | None:
    """Return the release of nvcc, or None."""
    home = os.environ.get("CUDA_HOME", os.environ.get("CUDA_PATH"))
    program = f"{home}/bin/nvcc" if home else shutil.which("nvcc")
    said = _output([program, "--version"]) if program else ""
    match = re.search(r"release (\d+\.\d+)", said)
    return match[1] if match else None


def _ops() -> dict[str, Any]:
    """Return which ops are built, in the folder that torch builds in, and whether it is locked."""
    root = _extensions_folder()
    spec = find_spec("deepspeed")
    installed = Path(spec.origin).parents[1] if spec is not None and spec.origin else None
    built, locks = {}, {}
    for name, place in OPS.items():
        ready = (root / name / f"{name}.so").is_file()
        shipped = installed is not None and any(installed.glob(f"{place}*.so"))
        built[name] = "installed" if shipped else "built" if ready else None
        lock = root / name / "lock"
        if lock.exists():
            locks[str(lock)] = round(max(0.0, time.time() - lock.stat().st_mtime))
    return {"folder": str(root), "built": built, "locks": locks, **space_facts(nearest(root))}


def _extensions_folder() -> Path:
    """Return where torch builds extensions: torch.utils.cpp_extension._get_build_directory."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named is not None:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    try:
        import torch
    except (ImportError, OSError):
        return Path(cache) / "torch_extensions"
    cuda = torch.version.cuda
    kind = f"cu{cuda.replace('.', '')}" if cuda is not None else "cpu"
    number = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return Path(cache).resolve() / "torch_extensions" / f"{number}_{kind}"


def _limits() -> dict[str, Any]:
    def limit(which: int) -> list[int | None]:
        return [None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(which)]

    return {
        "open_files": limit(resource.RLIMIT_NOFILE),
        "address_space": limit(resource.RLIMIT_AS),
        "locked_memory": limit(resource.RLIMIT_MEMLOCK),
        "processes": limit(resource.RLIMIT_NPROC),
        "running": len(psutil.pids()),
        "infiniband": Path("/sys/class/infiniband").is_dir(),
    }


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
