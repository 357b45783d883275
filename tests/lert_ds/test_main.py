"""`python -m lert_ds` and the installed `lert-ds`: what a shell sees."""

import subprocess
import sys
from pathlib import Path

import pytest

import lert_ds

PYTHON = [sys.executable, "-m", "lert_ds"]
SCRIPT = [str(Path(sys.executable).parent / "lert-ds")]


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", [PYTHON, SCRIPT], ids=["python -m", "lert-ds"])
def test_both_names_of_the_program_answer(program: list[str]) -> None:
    result = shell(*program, "--version")
    assert (result.returncode, result.stdout) == (0, f"lert-ds {lert_ds.__version__}\n")


def test_a_mistake_reaches_the_shell_as_2_and_one_line() -> None:
    result = shell(*PYTHON, "--local_rank=0", "pretain", "pretrain-large")
    assert result.returncode == 2
    assert result.stderr.startswith("error: pretain: no such command (did you mean pretrain?)")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_importing_the_module_runs_nothing() -> None:
    assert shell(sys.executable, "-c", "import lert_ds.__main__").returncode == 0
