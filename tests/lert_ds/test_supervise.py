import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lert_ds.errors import ConfigError
from lert_ds.supervise import Supervisor, output_of

# A training in a few lines: what it does at its n-th start, n from 1, stands in `plan`.
PROGRAM = """
import fcntl, json, os, pathlib, signal, socket, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as file:
    file.write(json.dumps(sys.argv[2:]) + "\\n")
plan = (folder / "plan").read_text().split()
number = len((folder / "starts").read_text().splitlines())
for act in plan[min(number, len(plan)) - 1].split(","):
    if act.startswith("save"):
        place = folder / "run/checkpoints" / f"step-{act[4:]}"
        place.mkdir(parents=True)
    elif act == "finish":
        (folder / "run/model").mkdir(parents=True)
        (folder / "run/model/config.json").write_text("{}")
    elif act == "hold":
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lock = (folder / "run/.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": ""}
        lock.write(json.dumps(holder))
        lock.flush()
        print("holding", flush=True)
        time.sleep(60)
    elif act == "orphan":
        if os.fork() == 0:
            time.sleep(60)
    else:
        sys.exit(int(act[4:]))
"""


@pytest.fixture
def training(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "run").mkdir()
    return tmp_path


def supervise(
    folder: Path, plan: str, *, restarts: int = 2, output: Path | None = None
) -> tuple[int, str, list[str]]:
    """Run a plan under `lert-ds supervise`; return its exit code, words, and how it was started."""
    process = begin(folder, plan, restarts=restarts, output=output)
    _, said = process.communicate(timeout=60)
    return process.returncode, said, (folder / "starts").read_text().splitlines()


def begin(
    folder: Path, plan: str, *, restarts: int = 2, output: Path | None = None
) -> "subprocess.Popen[str]":
    (folder / "plan").write_text(plan)
    words = ["--restarts", str(restarts), "--wait-seconds", "0"]
    words += ["--output", str(output)] if output is not None else []
    program = [sys.executable, str(folder / "program.py"), str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "lert_ds", "supervise", *words, "--", *program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_failure_is_started_again_until_it_is_done(training: Path) -> None:
    code, said, starts = supervise(training, "exit1 exit247 exit0")
    assert (code, len(starts)) == (0, 3)
    assert "exit 1; no checkpoint yet; starts again in 0 s" in said


def test_failures_without_progress_are_counted(training: Path) -> None:
    code, said, starts = supervise(training, "exit3", restarts=2)
    assert (code, len(starts)) == (3, 3)
    assert "3 failures without a new checkpoint, giving up" in said


def test_a_new_checkpoint_starts_the_count_again(training: Path) -> None:
    plan = "exit1 save10,exit1 exit1 save20,exit1 exit1 finish,exit0"
    code, said, starts = supervise(training, plan, restarts=2, output=training / "run")
    assert (code, len(starts)) == (0, 6)
    assert "the newest checkpoint is step-20; starts again" in said


def test_a_users_error_is_not_tried_again(training: Path) -> None:
    code, _, starts = supervise(training, "exit2")
    assert (code, len(starts)) == (2, 1)


def test_what_began_again_goes_on_and_replaces_nothing(training: Path) -> None:
    _, _, starts = supervise(training, "exit1 finish,exit0", output=training / "run")
    assert starts == ["[]", '["overwrite=false", "resume=auto"]']


def test_an_exit_0_that_leaves_no_result_is_a_failure(training: Path) -> None:
    # DeepSpeed's runner exits so where the launcher under it was killed.
    code, said, starts = supervise(training, "exit0 finish,exit0", output=training / "run")
    assert (code, len(starts)) == (0, 2)
    assert "exit 1; " in said


def test_a_result_of_before_is_none_of_this_run(training: Path) -> None:
    model = training / "run/model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    os.utime(model / "config.json", (1, 1))
    code, _, _ = supervise(training, "exit0", restarts=0, output=training / "run")
    assert code == 1


def test_what_a_dead_launcher_leaves_is_ended(training: Path) -> None:
    started = time.monotonic()
    code, _, _ = supervise(training, "orphan,exit1 exit0")
    assert code == 0
    assert time.monotonic() - started < 30
    left = subprocess.run(
        ["pgrep", "-f", str(training / "program.py")], capture_output=True, text=True, check=False
    )
    assert not left.stdout


def test_a_signal_reaches_the_training_itself(training: Path) -> None:
    process = begin(training, "hold", output=training / "run")
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "SIGTERM: the training saves and stops; once more ends it" in said
    assert len((training / "starts").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lert-ds", "pretrain", "pretrain-small", "output=runs/a"], "runs/a"),
        (["deepspeed", "--num_gpus", "2", "--module", "lert_ds", "distill",
          "distill-large-to-small", "train.steps=1", "output=runs/b"], "runs/b"),
        (["srun", "lert-ds", "recover", "recover-edge"], "runs/lert-edge-recovered"),
        (["bash", "my.sh"], None),
        (["lert-ds", "pretrain", "--help"], None),
    ],
)  # fmt: skip
def test_the_run_folder_of_a_command(words: list[str], expected: str | None) -> None:
    found = output_of(words)
    assert (str(found) if found is not None else None) == expected


def test_a_preset_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="pretrain-smal: neither"):
        output_of(["lert-ds", "pretrain", "pretrain-smal"])


def test_waits_grow_up_to_five_minutes(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    supervisor = Supervisor([sys.executable, "-c", "raise SystemExit(1)"], None, 9, 5.0)
    monkeypatch.setattr(Supervisor, "_sleep", lambda _, seconds: waits.append(seconds) or False)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    try:
        assert supervisor.run() == 1
    finally:
        for number, handler in zip(
            (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), handlers, strict=True
        ):
            signal.signal(number, handler)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
