"""The command as a user would call it, and a host's facts to spoil."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lert_ds.doctor.facts import facts
from lert_ds.doctor.plan import Plan

ROOT = Path(__file__).parents[3]
LAUNCHED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class Told:
    """What the command printed with --json, and its exit code."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.errors, self.text = done.returncode, done.stderr, done.stdout
        try:
            self.rows: list[dict[str, Any]] = json.loads(done.stdout)
        except json.JSONDecodeError:
            self.rows = []

    def of(self, check: str, host: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of a check that are about a host."""
        return [
            row
            for row in self.rows
            if row["check"] == check and (host is None or host in row["hosts"])
        ]

    def status(self, check: str, host: str | None = None) -> set[str]:
        return {row["status"] for row in self.of(check, host)}


def call_doctor(arguments: Sequence[str], environment: dict[str, str] | None = None) -> Told:
    """Run `lert-ds doctor … --json` from the project's folder, alone, as from a shell."""
    plain = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    done = subprocess.run(
        [sys.executable, "-m", "lert_ds", "doctor", *arguments, "--json"],
        cwd=ROOT, env=plain | (environment or {}), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    return Told(done)


@pytest.fixture(scope="session")
def doctor() -> Callable[..., Told]:
    """Arguments, and changes of the environment → what the command told."""
    return call_doctor


@pytest.fixture(scope="session")
def _facts() -> dict[str, Any]:
    return facts()


@pytest.fixture
def hosts(_facts: dict[str, Any]) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function: names → this machine's facts for each, as a healthy host has them."""

    def make(*names: str) -> dict[str, dict[str, Any]]:
        made = {name: copy.deepcopy(_facts) for name in names}
        for each in made.values():
            tools = each["tools"]
            tools.update({name: tools[name] or f"bin/{name}" for name in ("c++", "ninja")})
            each.update(python_headers=True)
            each["ops"].update(built=dict.fromkeys(each["ops"]["built"]), locks={}, refused=None)
            each["accelerator"] = {"name": "cpu", "devices": [], "problem": None, "cuda": None}
        return made

    return make


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., Plan]:
    """Changes of the training, the JSON, the numbers → the plan of a run."""

    def make(
        train: dict[str, Any] | None = None,
        deepspeed: dict[str, Any] | None = None,
        optimizer: str = "adamw",
        **numbers: Any,
    ) -> Plan:
        config = {
            "output": str(tmp_path / "run"),
            "overwrite": False,
            "corpus": [],
            "corpus_valid": [],
            "deepspeed": "ds_configs/cpu_fp32.json",
            "optimizer": {"name": optimizer},
            "train": {
                "steps": 100,
                "save_every": 10,
                "keep_checkpoints": 2,
                "keep_every": 0,
                "save_in_background": False,
                "batch_size": 8,
            }
            | (train or {}),
        }
        given = {"parameters": 1000, "device_bytes": 2.0**20, "host_bytes": 0.0, "processes": 2}
        return Plan("pretrain", config, deepspeed or {}, **(given | numbers))

    return make


@pytest.fixture
def copy_corpus(tiny_corpus: Path) -> Callable[[Path], Path]:
    """Folder → a copy of the tiny corpus there."""
    return lambda folder: Path(shutil.copytree(tiny_corpus, folder))
