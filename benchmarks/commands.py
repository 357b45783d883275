"""Runs a measured command: one thread a process, on the first cores, and ends where it fails."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def execute(command: list[str], cores: int = 1) -> str:
    """Run a command on the first `cores` cores with one thread a process; return its output."""
    done = subprocess.run(
        ["taskset", "--cpu-list", f"0-{cores - 1}", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout
