"""Trainings that fail, by the real `deepspeed` launcher: all end, in time, with a word."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

pytestmark = [pytest.mark.launch, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 6.0
# Two polls of the watchdog, the launcher's own poll, and what a busy machine adds.
SLACK_SECONDS = 25.0

CONFIGURATION = """
corpus = "{corpus}"
deepspeed = "ds_configs/zero2_fp32.json"
schedule = {{warmup_steps = 2}}
architecture = {{layers = 2, hidden_size = 32, heads = 2, intermediate_size = 64, positions = 32}}
[train]
steps = 100000
batch_size = 8
micro_batch_size = 2
learning_rate = 1e-3
report_every = 10
evaluate_every = 0
save_every = 20
data_workers = 1
timeout_seconds = {timeout}
"""


class Run(NamedTuple):
    """A training under the launcher."""

    launcher: subprocess.Popen[bytes]
    output: Path
    log: Path
    """What all processes print."""

    def ranks(self) -> list[psutil.Process]:
        """Return the processes that train, by rank."""
        found = {}
        for process in psutil.Process(self.launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # one may end meanwhile
                words, parent = process.cmdline(), process.parent()
                rank = next((w for w in words if w.startswith("--local_rank=")), None)
                # Its data workers have the same command line.
                if rank is not None and parent is not None and rank not in parent.cmdline():
                    found[int(rank.partition("=")[2])] = process
        return [found[rank] for rank in sorted(found)]

    def wait_for_checkpoint(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not (self.output / "checkpoints/latest").is_file():
            assert self.launcher.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, "no checkpoint came"
            time.sleep(0.1)

    def newest(self) -> int:
        return int((self.output / "checkpoints/latest").read_text().removeprefix("step-"))

    def end(self, seconds: float) -> tuple[int, str]:
        """Wait until every process has ended; return the launcher's exit code and what was said."""
        end, processes = time.monotonic() + seconds, self.ranks()
        code = self.launcher.wait(seconds)
        _, alive = psutil.wait_procs(processes, timeout=max(end - time.monotonic(), 0))
        assert not alive
        return code, self.log.read_text("utf-8")

    def told(self) -> list[str]:
        lines = (self.output / "metrics.jsonl").read_text("utf-8").splitlines()
        return [x["message"] for x in map(json.loads, lines) if x["kind"] == "event"]


@pytest.fixture
def start(tiny_corpus: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a training without end; arguments are overrides."""
    started: list[Run] = []
    path = tmp_path / "run.toml"
    path.write_text(CONFIGURATION.format(corpus=tiny_corpus, timeout=TIMEOUT_SECONDS))

    def begin(*overrides: str, before: tuple[str, ...] = (), **environment: str) -> Run:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        program = Path(sys.executable).with_name("deepspeed")
        output = tmp_path / "run"
        command = [*before, str(program), "--num_gpus", "2", "--master_port", port]
        command += ["--module", "lert_ds", "pretrain", str(path), f"output={output}", *overrides]
        log = tmp_path / f"log-{len(started)}"
        # A session of its own: a Ctrl-C of the test reaches it alone.
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log.open("wb"), stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
        started.append(Run(process, output, log))
        return started[-1]

    yield begin
    for run in started:
        for process in psutil.process_iter(["cmdline"]):
            if f"output={run.output}" in (process.info["cmdline"] or []):
                process.kill()
        run.launcher.wait()


def goes_on(start: Callable[..., Run], newest: int) -> None:
    """Check that the next start goes on from the newest checkpoint, and ends when told to."""
    again = start("train.save_every=100000")
    end = time.monotonic() + 120
    while not any(message == f"resumed from step-{newest}" for message in again.told()):
        assert again.launcher.poll() is None, again.log.read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.1)
    again.ranks()[1].send_signal(signal.SIGUSR1)  # one of them is enough
    code, said = again.end(60)
    assert code == 0, said[-3000:]
    assert "saved and stopped by SIGUSR1" in said
    assert again.newest() > newest
    assert not (again.output / "model").exists()


def test_a_killed_rank_ends_the_run_which_goes_on(start: Callable[..., Run]) -> None:
    memory = set(Path("/dev/shm").iterdir())
    run = start()
    run.wait_for_checkpoint()
    run.ranks()[1].kill()
    code, said = run.end(SLACK_SECONDS)
    left = {path.name for path in set(Path("/dev/shm").iterdir()) - memory}
    assert not [name for name in left if name.startswith("deepspeed")]
    assert code != 0
    assert "exits with return code = -9" in said
    goes_on(start, run.newest())


def test_a_hung_rank_ends_the_run_in_time(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_for_checkpoint()
    hung = run.ranks()[1]
    hung.suspend()
    # The launcher gives a process 30 s to obey before it kills it; a stopped one cannot.
    code, said = run.end(TIMEOUT_SECONDS + SLACK_SECONDS + 30)
    assert code != 0
    host = socket.gethostname()
    assert f"error: rank 1 on {host}, step " in said
    assert "not heard of for 6 s" in said
    assert any(f"rank 1 on {host}, step " in message for message in run.told())


def test_a_rank_that_loops_for_ever_ends_the_run_in_time(start: Callable[..., Run]) -> None:
    # Its threads live on and tell so; only the training does not move.
    hang = {"LERT_DS_TEST_LOOP_AT": "30", "PYTHONPATH": str(ROOT / "tests/launch/hang")}
    run = start("train.data_workers=0", **hang)
    code, said = run.end(120 + TIMEOUT_SECONDS + SLACK_SECONDS)
    assert code != 0
    assert "no progress for 6 s" in said
    assert f"rank 1 on {socket.gethostname()}, step 30, waiting for data" in said
    assert "sitecustomize.py" in said, "the stack of the process that hangs is missing"


def test_the_launcher_killed_takes_its_ranks_with_it(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_for_checkpoint()
    ranks = run.ranks()
    ranks[0].parent().kill()
    _, alive = psutil.wait_procs(ranks, timeout=SLACK_SECONDS)
    assert not alive
    assert any("its launcher is gone" in message for message in run.told())


def test_nan_on_one_rank_ends_all_with_its_step(start: Callable[..., Run]) -> None:
    run = start("train.learning_rate=1e30", "optimizer.name=lion")
    code, said = run.end(120)
    assert code == 1
    assert "is inf or nan; nothing was updated or saved" in said
    assert "on rank " in said


def test_a_second_run_in_the_same_folder_is_refused(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_for_checkpoint()
    code, said = start().end(60)
    assert code == 2
    assert "a run is at work there (process " in said
    assert run.launcher.poll() is None


def test_ctrl_c_saves_and_a_second_one_exits_at_once(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_for_checkpoint()
    before = run.newest()
    os.killpg(run.launcher.pid, signal.SIGINT)  # as a terminal sends it: to every process
    code, said = run.end(60)
    assert "saved and stopped by SIG" in said
    assert run.newest() > before
    assert code in (0, 1, -signal.SIGINT)  # the launcher's own; its processes exit 0


def test_the_wall_clock_stops_a_run_in_time(start: Callable[..., Run]) -> None:
    started = time.monotonic()
    run = start("train.stop_before_hours=0.009")  # 32 s
    code, said = run.end(120)
    assert code == 0
    assert "saved and stopped by the wall-clock limit" in said
    # What starting takes on a busy machine comes on top where it takes longer than the limit.
    assert time.monotonic() - started < 0.009 * 3600 + 60


def test_supervise_starts_again_until_it_is_done(start: Callable[..., Run]) -> None:
    lert_ds = Path(sys.executable).with_name("lert-ds")
    supervisor = (str(lert_ds), "supervise", "--wait-seconds", "0.5", "--restarts", "3", "--")
    run = start("train.steps=200", before=supervisor)
    run.wait_for_checkpoint()
    run.ranks()[0].kill()
    code, said = run.end(180)
    assert code == 0, said[-3000:]
    assert said.count("starts again in 0.5 s") == 1
    assert any(message.startswith("resumed from step-") for message in run.told())
    assert (run.output / "model/config.json").is_file()
