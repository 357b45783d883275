"""Pre-training over two hosts: by every launcher the same numbers as two processes on one host.

The hosts are namespaces on this machine (tests/launch/cluster.py); ssh, pdsh, Slurm and the network
between them are real.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.utils import cpp_extension

pytestmark = [pytest.mark.launch, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
STEPS = 6
STAGES = ["zero2_fp32", "zero3_fp32"]
BATCH_JOB = {"steps": 120, "evaluate_every": 0, "save_every": 20}
"""Long enough to be warned on the way."""
# DeepSpeed's ops, built by the first test of all that needs them. Another `ninja` on the path than
# that one's would build them again, and the next test once more.
OPS = Path(cpp_extension._get_build_directory("fused_adam", verbose=False)).parent
# What a host does not know by itself: docs/hosts/pdsh.md.
HANDED_OVER = {
    "PATH": os.environ["PATH"],
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "eth0",
    "TORCH_EXTENSIONS_DIR": str(OPS),
}


def configuration(corpus: Path, output: Path, machine: str, **train: Any) -> dict[str, Any]:
    return {
        "output": str(output),
        "corpus": str(corpus),
        "deepspeed": f"ds_configs/{machine}.json",
        "architecture": {
            "layers": 2,
            "hidden_size": 32,
            "heads": 2,
            "intermediate_size": 64,
            "positions": 32,
        },
        "schedule": {"warmup_steps": 2},
        "train": {
            "steps": STEPS,
            "batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 3e-3,
            "report_every": 1,
            "evaluate_every": STEPS,
            "save_every": 0,
            "data_workers": 0,
            **train,
        },
    }


def write_toml(path: Path, tree: Mapping[str, Any]) -> Path:
    """Write a configuration; JSON's values are TOML's."""
    lines = []
    for key, value in tree.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"{key}{'.' * bool(k)}{k} = {json.dumps(v)}" for k, v in inner]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def hosts(cluster: Any, folder: Path, tiny_corpus: Path) -> Iterator[Any]:
    """Two hosts of a process each; `own` is a folder that they do not share, with the corpus."""
    (own := folder / "own").mkdir()
    with cluster(folder / "hosts", handed_over=HANDED_OVER, private=[own]) as up:
        for number in (0, 1):
            shutil.copytree(tiny_corpus, up.outside(number, own / "corpus"))
        yield up


@pytest.fixture(scope="module")
def expected(
    hosts: Any, launch_runs: Any, training_losses: Any, tiny_corpus: Path, folder: Path
) -> dict[str, list[float]]:
    """Losses of two processes on one host, by DeepSpeed's configuration, and of a longer run."""
    outputs = {name: folder / "one" / name for name in STAGES}
    trees = [configuration(tiny_corpus, output, name) for name, output in outputs.items()]
    outputs["batch job"] = folder / "one" / "batch job"
    trees.append(configuration(tiny_corpus, outputs["batch job"], STAGES[0], **BATCH_JOB))
    launch_runs(2, [("pretrain", tree) for tree in trees], folder)
    return {name: training_losses(output) for name, output in outputs.items()}


def run_on_each(hosts: Any, commands: Mapping[int, list[str]]) -> list[str]:
    """Run a command on each of some hosts at the same time and return what they printed."""
    started = [
        hosts.start(command, number, folder=ROOT, environment=HANDED_OVER,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for number, command in commands.items()
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in started]
    codes = [process.returncode for process in started]
    assert codes == [0] * len(codes), "\n".join(output[-3000:] for output in outputs)
    return outputs


@pytest.fixture(scope="module")
def by_pdsh(hosts: Any, expected: Any, tiny_corpus: Path, folder: Path) -> dict[str, Path]:
    """Run folders of both stages, trained by one launch from node0."""
    outputs = {name: folder / "pdsh" / name for name in STAGES}
    trees = [configuration(tiny_corpus, output, name) for name, output in outputs.items()]
    runs = folder / "pdsh.json"
    runs.write_text(json.dumps([("pretrain", tree) for tree in trees]), "utf-8")
    program = [str(PROGRAMS / "deepspeed"), "--hostfile", str(hosts.hostfile)]
    run_on_each(hosts, {0: [*program, "tests/launch/training_matrix.py", str(runs)]})
    return outputs


@pytest.mark.parametrize("name", STAGES)
def test_pdsh_trains_as_one_host_does(
    by_pdsh: Any, expected: Any, training_losses: Any, name: str
) -> None:
    assert training_losses(by_pdsh[name]) == expected[name]


def test_a_start_on_each_host_without_ssh_or_a_shared_disk_trains_alike(
    hosts: Any, expected: Any, training_losses: Any, folder: Path
) -> None:
    """Stopped and gone on with, too: each host has the checkpoint of its own processes."""
    own, name = folder / "own", STAGES[0]
    tree = configuration(own / "corpus", own / "run", name, save_every=2)
    runs = folder / "no_ssh.json"
    runs.write_text(json.dumps([("pretrain", tree, {"stop_after": 3}), ("pretrain", tree)]))
    commands = {
        number: [str(PROGRAMS / "deepspeed"), "--hostfile", str(hosts.hostfile), "--no_ssh",
                 "--node_rank", str(number), "--master_addr", hosts.address(0),
                 "tests/launch/training_matrix.py", str(runs)]
        for number in (0, 1)
    }  # fmt: skip
    first, _ = run_on_each(hosts, commands)
    assert "resumed from step-" in first
    runs_of = [hosts.outside(number, own / "run") for number in (0, 1)]
    assert training_losses(runs_of[0]) == expected[name]
    for number, run in enumerate(runs_of):
        files = {path.name for path in (run / "checkpoints" / f"step-{STEPS}").iterdir()}
        assert files == {"manifest.json", "state.json", f"rank-{number:05d}.safetensors"}
    assert [(run / "model" / "model.safetensors").is_file() for run in runs_of] == [True, False]
    assert not (own / "run").exists()


def test_torchrun_on_each_host_trains_alike(
    hosts: Any, expected: Any, training_losses: Any, tiny_corpus: Path, folder: Path
) -> None:
    name, output = STAGES[1], folder / "torchrun"
    toml = write_toml(folder / "torchrun.toml", configuration(tiny_corpus, output, name))
    commands = {
        number: [str(PROGRAMS / "torchrun"), "--nnodes=2", "--nproc_per_node=1",
                 f"--node_rank={number}", f"--master_addr={hosts.address(0)}",
                 "-m", "lert_ds", "pretrain", str(toml)]
        for number in (0, 1)
    }  # fmt: skip
    run_on_each(hosts, commands)
    assert training_losses(output) == expected[name]


def test_a_batch_job_that_is_warned_queues_itself_again_until_it_has_finished(
    hosts: Any, slurm: Any, expected: Any, training_losses: Any, tiny_corpus: Path, folder: Path
) -> None:
    """By srun, whose ranks are Slurm's own; not a loss differs from those of one start."""
    output, log = folder / "batch", folder / "batch.log"
    tree = configuration(tiny_corpus, output, STAGES[0], **BATCH_JOB)
    del tree["output"]
    toml = write_toml(folder / "batch.toml", tree)
    # The program alone: the folder that it is in has another `ninja`.
    (programs := folder / "programs").mkdir()
    (programs / "lert-ds").symlink_to(PROGRAMS / "lert-ds")
    with slurm(hosts) as queue:
        path = {"PATH": f"{programs}:{HANDED_OVER['PATH']}"}
        done = hosts.run(
            ["sbatch", "--parsable", "--ntasks-per-node=1", "--gpus-per-node=0", f"--output={log}",
             "docs/hosts/pretrain.sbatch", str(toml), f"output={output}"],
            folder=ROOT, environment=HANDED_OVER | queue.environment | path,
        )  # fmt: skip
        job = done.stdout.strip()
        assert job.isdecimal(), done.stdout
        wait_for(lambda: (output / "checkpoints" / "latest").exists(), log)
        queue.run("scancel", "--signal=USR1", job)  # what --signal=USR1@180 sends
        wait_for(lambda: "finished: " in log.read_text("utf-8"), log)
        wait_for(lambda: job not in queue.run("squeue", "-h", "-o", "%A").split(), log)
    told = log.read_text("utf-8")
    assert "SIGUSR1" in told
    assert "after 0 restarts; queues itself again" in told
    assert (output / "model" / "model.safetensors").is_file()
    assert training_losses(output) == expected["batch job"]


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        text = log.read_text("utf-8") if log.exists() else "nothing"
        assert time.monotonic() < end, text[-4000:]
        time.sleep(0.2)


def start_endless(hosts: Any, toml: Path, log: Path) -> subprocess.Popen[str]:
    """Start a training from node0 by pdsh; it goes on until something ends it."""
    command = [str(PROGRAMS / "deepspeed"), "--hostfile", str(hosts.hostfile), "--module",
               "lert_ds", "pretrain", str(toml)]  # fmt: skip
    with log.open("w", encoding="utf-8") as file:
        process: subprocess.Popen[str] = hosts.start(
            command, folder=ROOT, environment=HANDED_OVER, stdout=file, stderr=subprocess.STDOUT
        )
    return process


def ranks_on(hosts: Any, number: int) -> list[psutil.Process]:
    """The process of a host that trains."""
    return [p for p in hosts.processes(number) if "--local_rank=0" in p.cmdline()]


def test_a_cut_cable_and_a_dead_host_end_the_run_in_time_and_it_goes_on(
    hosts: Any, tiny_corpus: Path, folder: Path
) -> None:
    output, timeout_seconds = folder / "faults", 6.0
    tree = configuration(
        tiny_corpus, output, STAGES[0], steps=10**6, save_every=20, report_every=20,
        evaluate_every=0, timeout_seconds=timeout_seconds,
    )  # fmt: skip
    toml = write_toml(folder / "faults.toml", tree)
    latest = output / "checkpoints" / "latest"
    for fault in ("cable", "host"):
        log, before = folder / f"{fault}.log", latest.read_text() if latest.exists() else ""
        run = start_endless(hosts, toml, log)
        wait_for(lambda: latest.exists() and latest.read_text() != before, log)  # noqa: B023
        running = ranks_on(hosts, 0) + ranks_on(hosts, 1)
        assert len(running) == 2
        hosts.link(1, up=False) if fault == "cable" else hosts.kill(1)
        # Beyond the time itself: the watchdog's polls, and what a busy machine adds.
        _, alive = psutil.wait_procs(running, timeout=timeout_seconds + 12)
        assert not alive, log.read_text("utf-8")[-4000:]
        # pdsh ends when ssh has missed three answers of a host in a row.
        assert run.wait(60) != 0
        told = log.read_text("utf-8")
        assert re.search(r"error: rank 1 on node1, step \d+, .*: not heard of for 6 s", told)
        assert "resumed from step-" in told or fault == "cable"
        hosts.link(1, up=True) if fault == "cable" else hosts.boot(1)
    step = int(latest.read_text().removeprefix("step-"))
    alone = [str(PROGRAMS / "lert-ds"), "pretrain", str(toml), f"train.steps={step + 3}"]
    done = hosts.run(alone, 1, folder=ROOT, environment=HANDED_OVER)
    assert done.returncode == 0, done.stdout
    assert f"resumed from step-{step}" in done.stdout
    assert (output / "model" / "model.safetensors").is_file()
