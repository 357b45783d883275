"""Pre-training over two hosts: by every launcher the same numbers as two processes on one host.

The hosts are namespaces on this machine (tests/launch/cluster.py); ssh, pdsh, Slurm and the network
between them are real.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch.utils import cpp_extension

pytestmark = pytest.mark.launch

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
STEPS = 6
STAGES = ["zero2_fp32", "zero3_fp32"]
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
    """Losses of two processes on one host, by the configuration of DeepSpeed."""
    outputs = {name: folder / "one" / name for name in STAGES}
    trees = [configuration(tiny_corpus, output, name) for name, output in outputs.items()]
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
    own = folder / "own"
    name = STAGES[0]
    toml = write_toml(folder / "no_ssh.toml", configuration(own / "corpus", own / "run", name))
    commands = {
        number: [str(PROGRAMS / "deepspeed"), "--hostfile", str(hosts.hostfile), "--no_ssh",
                 "--node_rank", str(number), "--master_addr", hosts.address(0),
                 "--module", "lert_ds", "pretrain", str(toml)]
        for number in (0, 1)
    }  # fmt: skip
    run_on_each(hosts, commands)
    first, second = (hosts.outside(number, own / "run") for number in (0, 1))
    assert training_losses(first) == expected[name]
    assert (first / "model" / "model.safetensors").is_file()
    assert not (second / "model").exists()
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


def test_srun_trains_alike(
    hosts: Any, slurm: Any, expected: Any, training_losses: Any, tiny_corpus: Path, folder: Path
) -> None:
    name, output = STAGES[0], folder / "slurm"
    toml = write_toml(folder / "slurm.toml", configuration(tiny_corpus, output, name))
    with slurm(hosts) as queue:
        environment = HANDED_OVER | queue.environment
        done = hosts.run(
            ["srun", "--nodes=2", str(PROGRAMS / "lert-ds"), "pretrain", str(toml)],
            folder=ROOT, environment=environment,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert training_losses(output) == expected[name]
