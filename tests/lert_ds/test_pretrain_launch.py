"""Pre-training by the real `deepspeed` launcher, two processes: every ZeRO stage and precision."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.modeling_lert import LertForPreTraining

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


def pretrain(
    launch_runs: Any, processes: int, names: Sequence[str], corpus: Path, folder: Path
) -> dict[str, Path]:
    outputs = {name: folder / name for name in names}
    trees = [configuration(corpus, output, name) for name, output in outputs.items()]
    launch_runs(processes, [("pretrain", tree) for tree in trees], folder)
    return outputs


@pytest.fixture(scope="module")
def matrix(
    launch_runs: Any, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """Every configuration, trained by two processes."""
    return pretrain(launch_runs, 2, RUNS, tiny_corpus, tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def one_process(
    launch_runs: Any, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same training in one process that accumulates two micro-batches."""
    return pretrain(launch_runs, 1, RUNS[:1], tiny_corpus, tmp_path_factory.mktemp("one"))[RUNS[0]]


@pytest.fixture(scope="module")
def repeated(launch_runs: Any, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the matrix once more, in new processes."""
    return pretrain(launch_runs, 2, RUNS[:1], tiny_corpus, tmp_path_factory.mktemp("again"))[
        RUNS[0]
    ]


@pytest.mark.launch
@pytest.mark.parametrize("name", RUNS)
def test_every_stage_and_precision_trains_alike(
    training_losses: Any, matrix: Mapping[str, Path], one_process: Path, name: str
) -> None:
    expected, found = training_losses(one_process), training_losses(matrix[name])
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
def test_a_repeated_run_is_equal_bit_for_bit(
    training_losses: Any, matrix: Mapping[str, Path], repeated: Path
) -> None:
    assert training_losses(matrix[RUNS[0]]) == training_losses(repeated)
    first, _ = model_dir.load(matrix[RUNS[0]] / "model", LertForPreTraining)
    second, _ = model_dir.load(repeated / "model", LertForPreTraining)
    again = second.state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in first.state_dict().items())


@pytest.mark.launch
def test_the_launcher_passes_a_user_error_on(launch: Any, tmp_path: Path) -> None:
    done = launch(
        2,
        ["--module", "lert_ds", "pretrain", "pretrain-quickstart", f"output={tmp_path / 'run'}",
         f"corpus={tmp_path / 'nowhere'}"],
    )  # fmt: skip
    assert done.returncode == 2
    assert f"error: {tmp_path / 'nowhere'}: no such corpus folder" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
