"""What the README tells people to type exists."""

import re
import shlex
from pathlib import Path

import pytest

from distill.run import DistillRun
from lert_ds import cli, config
from lert_ds.finetune import run as finetune
from lert_ds.finetune.tasks import TASKS
from lert_ds.prepare import PrepareConfig
from lert_ds.pretrain import PretrainRun
from prune.benchmark.run import BenchmarkConfig
from prune.export.run import ExportConfig
from prune.prune_config import PruneRun
from prune.recover import RecoverRun

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PRESETS = [ROOT / package / "configs" for package in ("lert_ds", "distill", "prune")]
CONFIGURED = {
    "prepare": PrepareConfig,
    "pretrain": PretrainRun,
    "distill": DistillRun,
    "prune": PruneRun,
    "recover": RecoverRun,
    "export": ExportConfig,
    "benchmark": BenchmarkConfig,
    "benchmark pretrain": PretrainRun,
}


def commands() -> list[str]:
    """Every indented line of `lert-ds …` or `deepspeed …`, continued lines joined."""
    blocks = re.sub(r"\\\n\s+", "", README)
    lines = re.findall(r"^    ((?:lert-ds|deepspeed) [a-z-].*)$", blocks, re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in lines]


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_a_command_names_what_there_is(line: str) -> None:
    words = shlex.split(line)
    if "lert_ds" in words:
        words = words[words.index("lert_ds") :]
    _, command, *arguments = words
    if f"{command} {arguments[0]}" in cli.COMMANDS:
        command = f"{command} {arguments.pop(0)}"
    assert command in cli.COMMANDS
    if command == "finetune":
        name, model, *overrides = (word for word in arguments if not word.startswith("-"))
        for task in TASKS if name == finetune.ALL else [name]:
            assert finetune._read(task, model, overrides).model == model
        return
    if command not in CONFIGURED or "--show" in arguments:
        return
    names = [word for word in arguments if "=" not in word and not word.startswith("-")]
    path = config.find(names[0], PRESETS)
    config.load(CONFIGURED[command], path, [word for word in arguments if "=" in word])


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:lert_ds|distill|prune|ds_configs)/[\w/.]*)`", README)))
)
def test_a_file_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_make_targets_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:`|    )make ([a-z-]+)", README)) <= set(targets)
