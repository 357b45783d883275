"""Fixtures that several test modules share."""

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# One thread a process: tests start several, and threads that wait for a core cost more than they
# give. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import hypothesis
import numpy as np
import pytest

from lert_ds.data.shards import HELD_OUT, Manifest, write_manifest, write_shard
from lert_ds.files import sha256_of
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS, TASKS

# No test watches the clock: on a busy machine that fails what is right.
hypothesis.settings.register_profile("without_a_clock", deadline=None)
hypothesis.settings.load_profile("without_a_clock")

ROOT = Path(__file__).parents[1]
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


BUILD = """
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import build_shm_op
from lert_ds import op_builds
from lert_ds.data import native_masking
from lert_ds.kernels import cpu_ops
cpu_ops.load(), native_masking.load()
op_builds.wait_for_builds()
for name in ("FusedAdamBuilder", "CPUAdamBuilder"):
    get_accelerator().create_op_builder(name).load()
build_shm_op()
"""


@pytest.fixture(scope="session", autouse=True)
def ops_are_built(request: pytest.FixtureRequest) -> None:
    """Build before a launch what its processes would: a minute, which a time limit need not have.

    And what is killed while it builds leaves a lock, for which the next start waits.
    """
    if any(item.get_closest_marker("launch") for item in request.session.items):
        subprocess.run([sys.executable, "-c", BUILD], check=True, capture_output=True)


def write_tiny_corpus(folder: Path, *, instances: int, seed: int, length: int = 32) -> Path:
    """Write a corpus of two texts, repeated: what stands at a place tells which, and so the rest.

    Words are of one or two tokens; tags follow from the token. A model of any size learns it soon.
    """
    generator = np.random.default_rng(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
        chr(0x4E00 + i) for i in range(40)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    first = generator.integers(0, 2, size=(instances, 1))
    ids = 5 + (first + 7 * np.arange(length)) % 40
    ids[:, 0], ids[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    starts = np.ones((instances, length), dtype=np.bool_)
    starts[:, 2::3] = False
    starts[:, [0, -1]] = False
    arrays = {"input_ids": ids, "word_starts": starts}
    for task in TASKS:
        classes = (ids % len(LTP_TAGS[task])).astype(np.uint8)
        classes[:, [0, -1]] = IGNORE_INDEX
        arrays[task] = classes
    half = instances // 2
    shards = [
        write_shard(folder, f"0000{k}-000", {name: array[part] for name, array in arrays.items()})
        for k, part in enumerate((slice(0, half), slice(half, None)))
    ]
    write_manifest(
        folder,
        Manifest(
            length=length,
            vocabulary_size=len(vocabulary),
            tokenizer_sha256=sha256_of(folder / "vocab.txt"),
            special_ids=SPECIAL,
            tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
            instances=instances,
            shards=shards,
            counts={},
            statistics={},
            config={},
            versions={},
        ),
    )
    return folder


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """Undo what a command sets up: its handler writes to the captured stream of one test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _linear_of_its_own() -> Iterator[None]:
    """Undo what a ZeRO-3 engine does to its process: torch's linear function becomes DeepSpeed's.

    An export would trace that one.
    """
    before = sys.modules["torch"].nn.functional.linear if "torch" in sys.modules else None
    yield
    if "torch" in sys.modules and before is not None:
        sys.modules["torch"].nn.functional.linear = before


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A process group of one; DeepSpeed cannot join a second one after it has left the first."""
    from lert_ds.train.engine import join_processes, leave_processes

    join_processes()
    yield
    leave_processes()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder of 64 instances of 32 tokens, with 13 more held out."""
    folder = write_tiny_corpus(tmp_path_factory.mktemp("corpus") / "tiny", instances=64, seed=0)
    write_tiny_corpus(folder / HELD_OUT, instances=13, seed=1)
    return folder


@pytest.fixture
def command_line(
    process_group: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Call a command of `lert-ds` in this process, from the project's folder.

    Arguments, and the exit code that is expected → what it printed.
    """
    from lert_ds import cli, run_folder

    monkeypatch.chdir(ROOT)
    # DeepSpeed cannot join a second group.
    monkeypatch.setattr(run_folder, "leave_processes", lambda: None)

    def call(arguments: Sequence[str], code: int = 0) -> str:
        if code:
            with pytest.raises(SystemExit, match=f"^{code}$"):
                cli.main(arguments)
        else:
            cli.main(arguments)
        printed = capsys.readouterr()
        return printed.out + printed.err

    return call


@pytest.fixture(scope="session")
def run_on() -> Callable[..., Any]:
    """Return a function: corpus folder, output folder and changes → a training's configuration."""
    from lert_ds.config import parse
    from lert_ds.training_run import CorpusRun

    def make(corpus: Path, output: Path, **changes: Any) -> CorpusRun:
        tree = {
            "output": str(output),
            "corpus": str(corpus),
            "deepspeed": "ds_configs/zero2_bf16.json",
            "train": {"steps": 10, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3},
        }
        return parse(CorpusRun, tree | changes, "test")

    return make


def start_deepspeed(processes: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the real launcher on this machine's CPU, from the project's folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    program = Path(sys.executable).with_name("deepspeed")
    command = [str(program), "--num_gpus", str(processes), "--master_port", port, *arguments]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="session")
def launch() -> Callable[[int, Sequence[str]], subprocess.CompletedProcess[str]]:
    """Start the `deepspeed` launcher: number of processes, arguments → what it printed."""
    return start_deepspeed


@pytest.fixture(scope="session")
def launch_runs() -> Callable[[int, Sequence[tuple[str, Any]], Path], None]:
    """Train under the launcher: number of processes, (command, configuration) pairs, a folder."""

    def run(processes: int, runs: Sequence[tuple[str, Any]], folder: Path) -> None:
        (folder / "runs.json").write_text(json.dumps(runs), "utf-8")
        script = "tests/launch/training_matrix.py"
        done = start_deepspeed(processes, [script, str(folder / "runs.json")])
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    return run


@pytest.fixture(scope="session")
def training_losses() -> Callable[[Path], list[float]]:
    """Run folder → the loss of each report."""

    def read(output: Path) -> list[float]:
        lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
        return [r["loss"] for line in lines if (r := json.loads(line))["kind"] == "train"]

    return read


def _module(path: Path) -> ModuleType:
    """Import a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_tasks = _module(ROOT / "tests" / "tiny_tasks.py")
write_task, tiny_model = _tasks.write_task, _tasks.tiny_model


def _launch_module(name: str) -> ModuleType:
    """Import tests/launch/NAME.py; skip where its tools are missing."""
    module = _module(ROOT / "tests" / "launch" / f"{name}.py")
    if lacking := module.missing():
        pytest.skip(lacking)
    return module


@pytest.fixture(scope="session")
def cluster() -> Any:
    """The class of several hosts on this machine: folder, number of hosts → a context manager."""
    return _launch_module("cluster").Cluster


@pytest.fixture(scope="session")
def slurm(cluster: Any) -> Any:
    """The class of a real Slurm: a cluster that is up → a context manager."""
    return _launch_module("slurm_cluster").Slurm
