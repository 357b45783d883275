import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
TIMEOUT_SECONDS = 3.0  # of the scenarios
SLACK_SECONDS = 12.0  # two polls, and what a busy machine adds
HOST = socket.gethostname()
ADVICE = "Every process ends; start again to go on from the newest checkpoint"


class End(NamedTuple):
    """How one process ended."""

    code: int
    seconds: float
    said: str


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """How the processes of all scenarios ended, by scenario and rank: they run at once."""
    folder = tmp_path_factory.mktemp("watchdog")
    script = ROOT / "tests/launch/watchdog_scenarios.py"
    subprocess.run([sys.executable, str(script), str(folder)], cwd=ROOT, check=True, timeout=180)
    results = json.loads((folder / "results.json").read_text())
    return {
        name: End(one["code"], one["seconds"], (folder / f"{name}.txt").read_text())
        for name, one in results.items()
    }


def test_one_alone_that_hangs_ends_and_tells_where(ends: dict[str, End]) -> None:
    end = ends["alone_hangs-0"]
    assert end.code == 1
    assert TIMEOUT_SECONDS <= end.seconds < TIMEOUT_SECONDS + SLACK_SECONDS
    place = f"rank 0 on {HOST}, step 5, training"
    assert f"[{place}] error: no progress for 3 s: {place}. {ADVICE}" in end.said
    assert "in hang_here" in end.said, "the stack of the hang"
    assert f"recorded: no progress for 3 s: {place}. {ADVICE}" in end.said


def test_one_alone_that_moves_is_let_be(ends: dict[str, End]) -> None:
    end = ends["alone_moves-0"]
    assert end == (0, end.seconds, "")
    assert end.seconds > 2 * TIMEOUT_SECONDS * 0.9, "longer than the timeout"


def test_native_code_that_holds_the_interpreter_ends_too(ends: dict[str, End]) -> None:
    end = ends["alone_hangs_in_native_code-0"]
    assert end.code == 1
    assert end.seconds < 1.5 * TIMEOUT_SECONDS + SLACK_SECONDS
    assert "Timeout" in end.said
    assert "in alone_hangs_in_native_code" in end.said


@pytest.mark.parametrize("name", ["alone_hangs_unheard-0", "alone_hangs_on_a_full_disk-0"])
def test_it_ends_where_it_cannot_say_so(ends: dict[str, End], name: str) -> None:
    end = ends[name]
    assert end.code == 1
    # Not by the last resort, which needs half as long again.
    assert end.seconds < 1.5 * TIMEOUT_SECONDS
    if name.endswith("disk-0"):
        assert f"error: no progress for 3 s: rank 0 on {HOST}, step 5, training" in end.said


def test_a_stopped_process_ends_the_other_in_time(ends: dict[str, End]) -> None:
    end = ends["stopped-0"]
    assert end.code == 1
    assert TIMEOUT_SECONDS <= end.seconds < TIMEOUT_SECONDS + SLACK_SECONDS
    # Of two that make no progress, the one that is silent too comes first.
    assert f"error: no progress for 3 s: rank 1 on {HOST}, step 5, training, not hear" in end.said
    assert "recorded: no progress for 3 s: rank 1" in end.said
    assert ADVICE in end.said


@pytest.mark.parametrize("name", ["main_stopped-1", "main_killed-1"])
def test_without_rank_0_the_others_end_in_time(ends: dict[str, End], name: str) -> None:
    end = ends[name]
    assert end.code == 1
    assert end.seconds < TIMEOUT_SECONDS + SLACK_SECONDS
    if name == "main_stopped-1":  # it is killed in the end: not this is what the other saw
        assert end.seconds < ends["main_stopped-0"].seconds
    step = "step 6, saving" if name == "main_killed-1" else "step 5, training"
    silent = f"error: rank 0 on {HOST}, {step}: "
    assert f"{silent}does not answer" in end.said or f"{silent}not heard of" in end.said
    assert ADVICE in end.said


def test_a_killed_process_ends_the_other_in_time(ends: dict[str, End]) -> None:
    assert ends["killed-1"].code == -9
    end = ends["killed-0"]
    assert end.code == 1
    assert end.seconds < 2 + TIMEOUT_SECONDS + SLACK_SECONDS
    assert f"error: no progress for 3 s: rank 1 on {HOST}, step 6, saving, not hear" in end.said
    assert ADVICE in end.said


@pytest.mark.parametrize(("name", "rank", "other"), [("failed", 1, 0), ("main_failed", 0, 1)])
def test_a_failure_ends_the_others_at_once_with_its_code(
    ends: dict[str, End], name: str, rank: int, other: int
) -> None:
    assert ends[f"{name}-{rank}"].code == 2
    end = ends[f"{name}-{other}"]
    assert end.code == 2, "a user's mistake stays one"
    assert end.seconds < SLACK_SECONDS, "the timeout is a minute"
    place = f"rank {rank} on {HOST}, step 5, training"
    assert f"error: {place}: ValueError: no such thing. {ADVICE}" in end.said


def test_one_that_fails_and_cannot_leave_is_ended(ends: dict[str, End]) -> None:
    end = ends["failed_and_hangs-1"]
    assert end.code == 1
    assert end.seconds < 2 + SLACK_SECONDS
    assert "in hang_here" in end.said
    assert ends["failed_and_hangs-0"].code == 1


def test_the_one_that_is_behind_is_named_first(ends: dict[str, End]) -> None:
    behind = f"rank 1 on {HOST}, step 5, training"
    waiting = f"rank 0 on {HOST}, step 6, waiting for the others"
    for rank in (0, 1):
        end = ends[f"behind-{rank}"]
        assert end.code == 1
        assert end.seconds < TIMEOUT_SECONDS + SLACK_SECONDS
        assert f"error: no progress for 3 s: {behind}; {waiting}. {ADVICE}" in end.said
    assert "in hang_here" in ends["behind-1"].said


def test_closing_is_quiet(ends: dict[str, End]) -> None:
    for rank in (0, 1):
        assert ends[f"closed-{rank}"][::2] == (0, "")


def test_processes_end_with_their_launcher(ends: dict[str, End]) -> None:
    # It is killed while both go on training.
    said = []
    for rank in (0, 1):
        end = ends[f"launched-{rank}"]
        assert end.code == 1
        assert end.seconds < 2 * SLACK_SECONDS
        said.append(end.said)
    assert any("step 7, training: its launcher is gone" in one for one in said)
