"""Distillation by the real `deepspeed` launcher: every ZeRO stage, both precisions."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining

STEPS = 10
RUNS = [
    *(f"zero{stage}_{precision}" for precision in ("fp32", "bf16") for stage in (0, 1, 2)),
    "zero1_autocast",
    # Last: ZeRO-3 gives the process a linear function of DeepSpeed's own, which rounds otherwise.
    "zero3_fp32",
    "zero3_bf16",
]
IN_PIECES = "zero3_fp32 with its teacher in pieces"
CACHED = "zero1_fp32 with what the teacher said kept"
MATCHES = [
    {"feature": "hidden", "loss": "hidden_mse", "layers": "uniform",
     "proj": ["linear", 16, 32, {"lr": 1e-2}]},
    {"feature": "attention", "loss": "attention_mse", "layer_T": 0, "layer_S": 0, "weight": 10.0},
    {"feature": "qkv", "loss": "minilm_relation", "layer_T": -1, "layer_S": -1},
]  # fmt: skip
SCHEDULE = {
    "steps": STEPS, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3,
    "report_every": 1, "evaluate_every": STEPS, "save_every": 5, "data_workers": 0,
}  # fmt: skip
EPOCH_STEPS = 64 // 8


def configuration(
    corpus: Path, teacher: Path, output: Path, machine: str, **changes: Any
) -> tuple[str, dict[str, Any]]:
    tree = {
        "output": str(output),
        "corpus": str(corpus),
        "teacher": str(teacher),
        "teacher_precision": "fp32",
        "deepspeed": f"ds_configs/{machine}.json",
        "student": {
            "layers": 2, "hidden_size": 16, "heads": 4, "intermediate_size": 32, "positions": 32,
            "start": "teacher",
        },
        "distillation": {"kd_loss_type": "kl", "temperature_squared": True,
                         "hard_label_weight": 0.5, "intermediate_matches": MATCHES},
        "lip": {"pos": 0.1, "ner": 0.1, "dep": 0.1},  # in full weight from the second step on
        "schedule": {"warmup_steps": 2},
        "train": SCHEDULE,
    } | changes  # fmt: skip
    return "distill", tree


@pytest.fixture(scope="module")
def teacher(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = LertConfig(
        vocab_size=45, num_hidden_layers=4, hidden_size=32, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32, initializer_range=0.2,
        tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model_dir.save(LertForPreTraining(shape), tiny_corpus, folder)
    return folder


def with_cache(corpus: Path, teacher: Path, output: Path) -> tuple[str, dict[str, Any]]:
    """Two epochs, the second of which reads; the cache beside the run."""
    return configuration(
        corpus, teacher, output, "zero1_fp32",
        teacher_cache=str(output) + "-cache",
        teacher_cache_logits="exact",
        distillation={"kd_loss_type": "kl", "intermediate_matches": [MATCHES[0], MATCHES[2]]},
        train={**SCHEDULE, "steps": 2 * EPOCH_STEPS, "evaluate_every": 0, "save_every": 0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def matrix(
    launch_runs: Any, tiny_corpus: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """Every configuration, trained by two processes."""
    folder = tmp_path_factory.mktemp("matrix")
    outputs = {name: folder / name for name in (*RUNS, IN_PIECES, CACHED)}
    runs = [configuration(tiny_corpus, teacher, outputs[name], name) for name in RUNS]
    runs.append(with_cache(tiny_corpus, teacher, outputs[CACHED]))
    runs.append(
        configuration(
            tiny_corpus, teacher, outputs[IN_PIECES], "zero3_fp32", teacher_partitioned=True
        )
    )
    launch_runs(2, runs, folder)
    return outputs


@pytest.fixture(scope="module")
def one_process(
    launch_runs: Any, tiny_corpus: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same training in one process that accumulates two micro-batches."""
    folder = tmp_path_factory.mktemp("one")
    runs = [
        configuration(tiny_corpus, teacher, folder / "run", "zero0_fp32"),
        with_cache(tiny_corpus, teacher, folder / "cached"),
    ]
    launch_runs(1, runs, folder)
    return folder / "run"


def close(found: Sequence[float], expected: Sequence[float], name: str) -> bool:
    # bf16 keeps three digits of a weight; the loss is about 10 here.
    tolerance = 1e-4 if "fp32" in name else 0.15
    return len(found) == STEPS and found == pytest.approx(expected, abs=tolerance)


@pytest.mark.launch
@pytest.mark.parametrize("name", [*RUNS, IN_PIECES])
def test_every_stage_and_precision_distils_alike(
    training_losses: Any, matrix: Mapping[str, Path], one_process: Path, name: str
) -> None:
    expected = training_losses(one_process)
    assert expected[-1] < expected[1]
    assert close(training_losses(matrix[name]), expected, name)
    student, report = model_dir.load(matrix[name] / "model", LertForPreTraining)
    assert not report.random
    reference, _ = model_dir.load(one_process / "model", LertForPreTraining)
    weights = reference.state_dict()
    for key, weight in student.state_dict().items():
        # Two runs that differ in rounding alone: far less apart than a step's length, 3e-3 a step.
        assert torch.allclose(weight, weights[key], atol=1e-3 if "fp32" in name else 2e-2), key


@pytest.mark.launch
@pytest.mark.parametrize("name", ["zero1_bf16", "zero3_fp32"])
def test_an_interrupted_run_resumes_with_its_projections(
    launch_runs: Any, training_losses: Any, tiny_corpus: Path, teacher: Path,
    matrix: Mapping[str, Path], tmp_path: Path, name: str,
) -> None:  # fmt: skip
    run = shutil.copytree(matrix[name], tmp_path / "run")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints/step-10")
    (run / "checkpoints/latest").write_text("step-5")
    (run / "metrics.jsonl").unlink()
    launch_runs(2, [configuration(tiny_corpus, teacher, run, name)], tmp_path)
    assert training_losses(run) == training_losses(matrix[name])[5:]
    again, _ = model_dir.load(run / "model")
    first, _ = model_dir.load(matrix[name] / "model")
    weights = again.state_dict()
    assert all(torch.equal(w, weights[key]) for key, w in first.state_dict().items())


@pytest.mark.launch
def test_processes_that_keep_what_the_teacher_said_train_as_one_does(
    training_losses: Any, matrix: Mapping[str, Path], one_process: Path
) -> None:
    found = training_losses(matrix[CACHED])
    expected = training_losses(one_process.with_name("cached"))
    assert len(found) == 2 * EPOCH_STEPS
    assert found == pytest.approx(expected, abs=1e-4)
