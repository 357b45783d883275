"""What a run would be: the numbers that its own command tells with --dry-run.

The command itself is asked, in a process of its own, so that what it would refuse is refused here
in its words, for every kind of training; then DeepSpeed is asked about the JSON.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lert_ds.config import find
from lert_ds.data.sampler import solve_micro_batch_size
from lert_ds.data.shards import HELD_OUT
from lert_ds.errors import ConfigError
from lert_ds.train import deepspeed_config

PRESETS = {"pretrain": "lert_ds", "distill": "distill", "recover": "prune"}
"""Commands that train, and the package that has their presets."""

TELLING = {
    "recover": {"model", "objective"},
    "distill": {"teacher", "student", "distillation", "labels_only", "teacher_precision"},
}
"""Top-level keys that a configuration of no known name gives away its command by."""

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """A run whose configuration holds."""

    command: str
    config: dict[str, Any]
    """Resolved."""
    deepspeed: dict[str, Any]
    """DeepSpeed's JSON, with the run's numbers."""
    parameters: int
    device_bytes: float
    """Estimated memory a process, on its device."""
    host_bytes: float
    """The same on the host, under offload."""
    processes: int

    @property
    def offload(self) -> bool:
        """Whether the optimizer runs on the host."""
        return deepspeed_config.offloads_optimizer(self.deepspeed)

    @property
    def corpora(self) -> list[list[str]]:
        """Folders that are read as one corpus: the training's, and the evaluation's where named."""
        given = [list(self.config["corpus"]), list(self.config["corpus_valid"])]
        if not given[1]:
            held_out = [Path(folder) / HELD_OUT for folder in given[0]]
            given[1] = [str(folder) for folder in held_out if folder.is_dir()]
        return [folders for folders in given if folders]


def command_of(name: str, overrides: Sequence[str]) -> tuple[str, Path]:
    """Return the command that a configuration is for, and its file.

    A preset is named after its command; so is a file, or its keys tell.

    Raises:
        ConfigError: there is no such file or preset, or an override that is none.
    """
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"{override}: write an override as key.path=value")
    top = Path(__file__).parents[2]
    path = find(name, [top / package / "configs" for package in PRESETS.values()])
    for command in PRESETS:
        if path.stem == command or path.stem.startswith(f"{command}-"):
            return command, path
    try:
        keys = set(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        keys = set()  # the command says what is wrong with it
    keys |= {re.split(r"[.=]", override)[0] for override in overrides}
    for command, telling in TELLING.items():
        if keys & telling:
            return command, path
    return "pretrain", path


def plan(
    command: str, path: Path, overrides: Sequence[str], processes: int, seconds: float
) -> Plan:
    """Return the plan of a run over `processes`.

    Raises:
        ConfigError: the command refuses the configuration, in its own words.
    """
    arguments = [command, str(path), *overrides, "--dry-run", "--processes", str(processes)]
    ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lert_ds", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"lert-ds {command} --dry-run took more than {seconds:.0f} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        if done.returncode != 2:  # no mistake of the user's
            raise ConfigError(f"lert-ds {command} --dry-run failed: {said[-1]}")
        raise ConfigError(said[-1].removeprefix("error: "))
    resolved, numbers = read_dry_run(done.stdout)
    return Plan(
        command=command,
        config=resolved,
        deepspeed=_deepspeed_of(resolved, processes),
        processes=processes,
        **numbers,
    )


def read_dry_run(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration that a command printed with --dry-run, and its numbers.

    Of a teacher it tells the bytes of its weights in bf16; in fp32, on a processor without bf16,
    it takes twice that.
    """
    config, end = json.JSONDecoder().raw_decode(text, text.index("{"))
    rest = text[end:]
    parameters = _number(r"^parameters\s+([\d,]+)$", rest)
    memory = r"^memory a process\s+([\d.]+) GiB = .*; on the host ([\d.]+)$"
    teachers = re.findall(r"^teacher\s.* ([\d.]+) GiB in bf16", rest, re.MULTILINE)
    device = _number(memory, rest) + sum(map(float, teachers))
    return config, {
        "parameters": int(parameters),
        "device_bytes": device * GIB,
        "host_bytes": _number(memory, rest, 2) * GIB,
    }


def _number(pattern: str, text: str, group: int = 1) -> float:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"--dry-run tells no {pattern!r}"
    return float(match[group].replace(",", ""))


def _deepspeed_of(config: Mapping[str, Any], processes: int) -> dict[str, Any]:
    train = config["train"]
    warmup = [size for _, size in train["batch_warmup"]]
    each = solve_micro_batch_size(train["batch_size"], train["micro_batch_size"], processes, warmup)
    return deepspeed_config.resolve(
        Path(config["deepspeed"]),
        {
            "train_batch_size": train["batch_size"],
            "train_micro_batch_size_per_gpu": each,
            "gradient_accumulation_steps": train["batch_size"] // (each * processes),
            "gradient_clipping": train["gradient_clipping"],
        },
    )
