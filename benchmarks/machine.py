"""What a benchmark's figures were measured on."""

import os
import platform
from pathlib import Path


def description() -> dict[str, str | int | None]:
    """Return the processor, its cores and Python's version, for the record beside the figures."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
