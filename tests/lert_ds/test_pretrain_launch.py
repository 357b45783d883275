"""Pre-training by the real `deepspeed` launcher, two processes: every ZeRO stage and precision."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.modeling_lert import LertForPreTraining

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STEPS = 10
STAGES = ["zero0", "zero1", "zero2", "zero3"]
RUNS = [
    *(f"{stage}_{precision}" for precision in ("fp32", "bf16") for stage in STAGES),
    "zero2_bf16_offload",
    "zero1_autocast",
]


def configuration(corpus: Path, output: Path, machine: str) -> dict[str, Any]:
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
            "save_every": STEPS,
            "data_workers": 0,
        },
    }


def launch(processes: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [
        str(BIN / "deepspeed"), "--num_gpus", str(processes), "--master_port", str(free_port()),
        *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses(output: Path) -> list[float]:
    lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    reports = [json.loads(line) for line in lines]
    return [report["loss"] for report in reports if report["kind"] == "train"]


def pretrain(processes: int, names: Sequence[str], corpus: Path, folder: Path) -> dict[str, Path]:
    outputs = {name: folder / name for name in names}
    trees = [configuration(corpus, output, name) for name, output in outputs.items()]
    (folder / "runs.json").write_text(json.dumps(trees), "utf-8")
    done = launch(processes, ["tests/launch/pretrain_matrix.py", str(folder / "runs.json")])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return outputs


@pytest.fixture(scope="module")
def matrix(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Every configuration, trained by two processes."""
    return pretrain(2, RUNS, tiny_corpus, tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def one_process(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process that accumulates two micro-batches."""
    return pretrain(1, RUNS[:1], tiny_corpus, tmp_path_factory.mktemp("one"))[RUNS[0]]


@pytest.fixture(scope="module")
def repeated(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the matrix once more, in new processes."""
    return pretrain(2, RUNS[:1], tiny_corpus, tmp_path_factory.mktemp("again"))[RUNS[0]]


@pytest.mark.launch
@pytest.mark.parametrize("name", RUNS)
def test_every_stage_and_precision_trains_alike(
    matrix: Mapping[str, Path], one_process: Path, name: str
) -> None:
    expected, found = losses(one_process), losses(matrix[name])
    assert len(found) == STEPS
    # bf16 keeps three digits of a weight; the loss is about 4 to 13 here.
    tolerance = 1e-4 if name.endswith("fp32") else 0.15
    assert found == pytest.approx(expected, abs=tolerance)
    model, report = model_dir.load(matrix[name] / "model", LertForPreTraining)
    assert not report.random
    reference, _ = model_dir.load(one_process / "model", LertForPreTraining)
    weights = reference.state_dict()
    for key, weight in model.state_dict().items():
        # Two runs that differ in rounding alone: far less apart than a step's length, 3e-3 a step.
        limit = 1e-3 if name.endswith("fp32") else 2e-2
        assert torch.allclose(weight, weights[key], atol=limit), key


@pytest.mark.launch
def test_a_repeated_run_is_equal_bit_for_bit(matrix: Mapping[str, Path], repeated: Path) -> None:
    assert losses(matrix[RUNS[0]]) == losses(repeated)
    first, _ = model_dir.load(matrix[RUNS[0]] / "model", LertForPreTraining)
    second, _ = model_dir.load(repeated / "model", LertForPreTraining)
    again = second.state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in first.state_dict().items())


@pytest.mark.launch
def test_the_launcher_passes_a_user_error_on(tmp_path: Path) -> None:
    done = launch(
        2,
        ["--module", "lert_ds", "pretrain", "pretrain-quickstart", f"output={tmp_path / 'run'}",
         f"corpus={tmp_path / 'nowhere'}"],
    )  # fmt: skip
    assert done.returncode == 2
    assert f"error: {tmp_path / 'nowhere'}: no such corpus folder" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
