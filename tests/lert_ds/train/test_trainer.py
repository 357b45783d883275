import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lert_ds.config import parse
from lert_ds.errors import ConfigError
from lert_ds.objective import Batch, StepOutput
from lert_ds.train import deepspeed_config
from lert_ds.train.checkpoint import Checkpoints
from lert_ds.train.engine import Engine, NonFiniteError
from lert_ds.train.optim import OptimizerConfig
from lert_ds.train.schedule import ScheduleConfig
from lert_ds.train.tracking import Reporter, TrackingConfig
from lert_ds.train.trainer import Data, TrainConfig, Trainer

ROOT = Path(__file__).parents[3]
BATCH_SIZE, MICRO = 4, 2


class Regression(nn.Module):
    """A linear regression with dropout on a batch's input_ids."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)
        self.steps_seen: list[int] = []
        self.spoil_at: int | None = None

    def forward(self, batch: Batch, *, step: int) -> StepOutput:
        self.steps_seen.append(step)
        inputs = batch.input_ids.float()
        loss = (self.linear(self.dropout(inputs)) - inputs.sum(1, keepdim=True)).square().mean()
        if self.spoil_at == step:
            loss = loss * math.nan
        count = torch.tensor(float(len(inputs)))
        metrics = {"loss": torch.stack([loss.detach() * count, count])}
        return StepOutput(loss, metrics)

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        return {**values, "root": values["loss"] ** 0.5}


pytestmark = pytest.mark.usefixtures("process_group")


def batches(samples: int) -> Iterator[tuple[int, Batch]]:
    nothing = torch.zeros(0, dtype=torch.int64)
    number = samples // MICRO
    while True:
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randint(0, 5, (MICRO, 4), generator=generator)
        yield number, Batch(inputs, None, nothing, nothing, {})
        number += 1


def make(folder: Path, objective: Regression, **changes: Any) -> Trainer:
    tree = {
        "steps": 6, "batch_size": BATCH_SIZE, "micro_batch_size": MICRO, "learning_rate": 0.1,
        "report_every": 2, "evaluate_every": 3, "save_every": 2, **changes,
    }  # fmt: skip
    config = parse(TrainConfig, tree, "test")
    owned = {
        "train_batch_size": BATCH_SIZE,
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": BATCH_SIZE // MICRO,
        "gradient_clipping": 1.0,
    }
    resolved = deepspeed_config.resolve(ROOT / "ds_configs/zero1_fp32.json", owned)
    folder.mkdir(exist_ok=True)

    def held_out() -> list[Batch]:
        return [batch for _, batch in zip(range(2), (b for _, b in batches(1000)), strict=False)]

    return Trainer(
        Engine(objective, OptimizerConfig(), resolved),
        objective,
        Data(batches, held_out),
        config,
        ScheduleConfig(warmup_steps=2),
        reporter=Reporter(TrackingConfig(), folder, config.steps, {}, main=True),
        checkpoints=Checkpoints(folder / "checkpoints", config.keep_checkpoints),
        seed=7,
        flops_per_token=1.0,
        peak_flops=1e9,
    )


def reports(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def test_a_run_reports_evaluates_and_saves_when_due(tmp_path: Path) -> None:
    objective = Regression()
    last = make(tmp_path, objective).fit({})
    train, valid = reports(tmp_path, "train"), reports(tmp_path, "valid")
    assert [record["step"] for record in train] == [2, 4, 6]
    assert [record["samples"] for record in train] == [8, 16, 24]
    assert [record["step"] for record in valid] == [3, 6]
    assert last["root"] == pytest.approx(last["loss"] ** 0.5)
    saved = {path.name for path in (tmp_path / "checkpoints").glob("step-*")}
    assert saved == {"step-4", "step-6"}
    assert (tmp_path / "checkpoints/latest").read_text() == "step-6"
    # The rate of the last update: step 5 of 6, linear from step 0.
    assert train[-1]["learning_rate"] == pytest.approx(0.1 * (1 - 5 / 6))
    assert {"tokens_per_second", "mfu", "memory_gib", "data_wait_share", "gradient_norm"} <= set(
        train[0]
    )


def test_the_objective_gets_the_optimizer_step(tmp_path: Path) -> None:
    objective = Regression()
    make(tmp_path, objective, evaluate_every=0).fit({})
    assert objective.steps_seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = Regression()
    make(tmp_path / "whole", whole).fit({})

    stopped = Regression()
    stopped.spoil_at = 5
    with pytest.raises(NonFiniteError):
        make(tmp_path / "stopped", stopped).fit({})
    resumed = Regression()
    trainer = make(tmp_path / "stopped", resumed)
    tag = Checkpoints(tmp_path / "stopped/checkpoints", 2).newest()
    assert tag == "step-4"
    trainer.resume(tag)
    trainer.fit({})
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    assert (
        reports(tmp_path / "whole", "valid")[-1]["loss"]
        == reports(tmp_path / "stopped", "valid")[-1]["loss"]
    )


def test_dropout_is_a_function_of_the_micro_batch(tmp_path: Path) -> None:
    first, second = Regression(), Regression()
    make(tmp_path / "first", first, evaluate_every=0).fit({})
    torch.manual_seed(12345)
    # Evaluating in between draws no dropout and must not shift what comes after it.
    make(tmp_path / "second", second, evaluate_every=1).fit({})
    assert torch.equal(first.linear.weight, second.linear.weight)


def test_a_non_finite_loss_stops_before_the_optimizer(tmp_path: Path) -> None:
    objective = Regression()
    objective.spoil_at = 3
    trainer = make(tmp_path, objective)
    with pytest.raises(NonFiniteError, match="step 3 on rank 0: the loss is inf or nan; nothing"):
        trainer.fit({})
    assert torch.isfinite(objective.linear.weight).all()
    assert trainer.step == 3
    assert "inf or nan" in reports(tmp_path, "event")[-1]["message"]


def test_a_run_that_was_killed_after_its_last_save_is_evaluated(tmp_path: Path) -> None:
    expected = make(tmp_path, Regression()).fit({})
    trainer = make(tmp_path, Regression())
    trainer.resume("step-6")
    assert trainer.fit({}) == expected


def test_evaluation_restores_training(tmp_path: Path) -> None:
    objective = Regression()
    trainer = make(tmp_path, objective)
    trainer.evaluate()
    assert objective.training


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("batch_size", 0), ("micro_batch_size", -1), ("save_every", -1),
     ("learning_rate", 0.0), ("gradient_clipping", -1.0), ("keep_checkpoints", 0)],
)  # fmt: skip
def test_impossible_numbers_are_refused_by_key(key: str, value: float) -> None:
    tree = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 0.1, key: value}
    with pytest.raises(ConfigError, match=key):
        parse(TrainConfig, tree, "test")
