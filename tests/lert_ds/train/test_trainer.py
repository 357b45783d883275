import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lert_ds.config import parse
from lert_ds.errors import ConfigError
from lert_ds.objective import Batch, StepOutput
from lert_ds.train import checkpoint as checkpoint_module
from lert_ds.train import deepspeed_config
from lert_ds.train.best import FILE, BestWeights
from lert_ds.train.checkpoint import Checkpoints, SaveError
from lert_ds.train.checkpoint_folder import Written
from lert_ds.train.engine import Engine, NonFiniteError
from lert_ds.train.fragments import write
from lert_ds.train.interruption import CLOCK, Interruption
from lert_ds.train.optim import OptimizerConfig
from lert_ds.train.peers import Peers
from lert_ds.train.schedule import ScheduleConfig
from lert_ds.train.tracking import Reporter, TrackingConfig
from lert_ds.train.trainer import Data, Judge, Surroundings, TrainConfig, Trainer, _Window
from lert_ds.train.watchdog import Watchdog

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
        return StepOutput(loss, metrics, (inputs,))

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        return {**values, "root": values["loss"] ** 0.5}


pytestmark = pytest.mark.usefixtures("process_group")


def batches(_step: int, samples: int) -> Iterator[tuple[int, Batch]]:
    nothing = torch.zeros(0, dtype=torch.int64)
    number = samples // MICRO
    while True:
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randint(0, 5, (MICRO, 4), generator=generator)
        yield number, Batch(inputs, None, nothing, nothing, {})
        number += 1


class Asked(Interruption):
    """Asks to stop at the end of given steps: step, counted from this start, to the code."""

    def __init__(self, codes: dict[int, int]) -> None:
        super().__init__(None)
        self._codes, self._steps = codes, 0
        self.margins: list[float] = []

    def code(self, margin_seconds: float) -> int:
        self._steps += 1
        self.margins.append(margin_seconds)
        return max((code for step, code in self._codes.items() if step <= self._steps), default=0)


def make(
    folder: Path,
    objective: Regression,
    interruption: Interruption | None = None,
    *,
    best_by: str | None = None,
    judge: Callable[[], Judge] | None = None,
    **changes: Any,
) -> Trainer:
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

    def held_out(_step: int) -> list[Batch]:
        return [batch for _, batch in zip(range(2), (b for _, b in batches(0, 1000)), strict=False)]

    peers = Peers(60)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        peers,
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
        background=config.save_in_background,
    )
    return Trainer(
        Engine(objective, OptimizerConfig(), resolved),
        objective,
        Data(batches, held_out, judge),
        config,
        ScheduleConfig(warmup_steps=2),
        Surroundings(
            Reporter(TrackingConfig(), folder, config.steps, {}, main=True),
            checkpoints,
            peers,
            interruption or Asked({}),
            Watchdog(60, peers, print),
            None if best_by is None else BestWeights(folder, best_by, peers),
        ),
        seed=7,
        flops_per_token=lambda _step: 1.0,
        peak_flops=1e9,
    )


def reports(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def messages(folder: Path) -> list[str]:
    return [record["message"] for record in reports(folder, "event")]


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


WARMUP = [[0, 2], [2, 8], [3, 4]]


def test_the_batch_grows_with_the_step(tmp_path: Path) -> None:
    objective = Regression()
    make(tmp_path, objective, batch_warmup=WARMUP, evaluate_every=0, report_every=1).fit({})
    train = reports(tmp_path, "train")
    assert [record["samples"] for record in train] == [2, 4, 12, 16, 20, 24]
    assert objective.steps_seen == [0, 1, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5]


def test_an_interrupted_warmup_ends_like_one_that_was_not(tmp_path: Path) -> None:
    changes = {"batch_warmup": WARMUP, "save_every": 1, "report_every": 1, "evaluate_every": 0}
    whole, parts = Regression(), Regression()
    make(tmp_path / "whole", whole, **changes).fit({})
    for stop in (1, 2, 3):  # in each phase and at its border
        trainer = make(tmp_path / "parts", Regression(), Asked({1: CLOCK}), **changes)
        found = Checkpoints(tmp_path / "parts/checkpoints", Peers(60), keep=2).newest()
        if found is not None:
            trainer.resume(found.tag)
        trainer.fit({})
        assert trainer.step == stop
    trainer = make(tmp_path / "parts", parts, **changes)
    trainer.resume("step-3")
    trainer.fit({})
    assert torch.equal(whole.linear.weight, parts.linear.weight)
    kept = [{k: r[k] for k in ("step", "samples", "loss", "learning_rate", "gradient_norm")}
            for name in ("whole", "parts") for r in reports(tmp_path / name, "train")]  # fmt: skip
    assert kept[:6] == kept[6:]


def test_data_is_asked_for_where_the_run_stands(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []
    evaluated: list[int] = []

    def training(step: int, samples: int) -> Iterator[tuple[int, Batch]]:
        asked.append((step, samples))
        return batches(step, samples)

    def held_out(step: int) -> list[Batch]:
        evaluated.append(step)
        return [next(batches(0, 0))[1]]

    trainer = make(tmp_path, Regression(), batch_warmup=WARMUP)
    trainer._data = Data(training, held_out)
    trainer.fit({})
    trainer.resume("step-4")
    trainer.fit({})
    assert asked == [(0, 0), (4, 16)]
    assert evaluated == [3, 6, 6]


def test_the_mfu_counts_what_a_token_takes_at_its_step(tmp_path: Path) -> None:
    window = _Window()
    window.add(100, 2.0)
    window.add(50, 4.0)
    window.started -= 1000.0
    read = window.read(torch.device("cpu"), 10.0)
    assert read["tokens_per_second"] == pytest.approx(0.15, rel=1e-3)
    assert read["mfu"] == pytest.approx(400 / 1000 / 10, rel=1e-3)


class Counting:
    """Judges by how many instances it was given."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, answers: tuple[torch.Tensor, ...]) -> None:
        self.count += len(answers[0])

    def values(self, peers: Peers) -> dict[str, float]:
        return {"instances": float(sum(peers.gather(self.count)))}


def test_answers_are_judged_together_at_the_end_of_an_evaluation(tmp_path: Path) -> None:
    last = make(tmp_path, Regression(), judge=Counting).fit({})
    assert last["instances"] == 2 * MICRO
    assert [record["instances"] for record in reports(tmp_path, "valid")] == [4.0, 4.0]


class Falling(Regression):
    """Its score is best at the second of three evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = iter([0.5, 0.75, 0.75])
        self.seen: list[torch.Tensor] = []

    def score(self) -> float:
        self.seen.append(self.linear.weight.detach().clone())
        return next(self.scores)


def test_the_best_weights_are_kept_and_known_again(tmp_path: Path) -> None:
    objective = Falling()

    class Scoring(Counting):
        def values(self, peers: Peers) -> dict[str, float]:
            return {"score": objective.score()}

    trainer = make(tmp_path, objective, best_by="score", judge=Scoring, evaluate_every=2)
    trainer.fit({})
    again = BestWeights(tmp_path, "score", Peers(60))
    assert again.best is not None
    assert again.best.step == 4  # of two equals the first
    assert again.best.values["score"] == 0.75
    assert torch.equal(again.read()["linear.weight"], objective.seen[1])
    assert not torch.equal(objective.seen[1], objective.seen[2])
    again.remove()
    assert not (tmp_path / FILE).exists()


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
        make(tmp_path / "stopped", stopped, save_in_background=False).fit({})
    resumed = Regression()
    trainer = make(tmp_path / "stopped", resumed)
    found = Checkpoints(tmp_path / "stopped/checkpoints", Peers(60), keep=2).newest()
    assert found is not None
    assert found.tag == "step-4"
    trainer.resume(found.tag)
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


@pytest.mark.parametrize("code", [signal.SIGTERM, signal.SIGUSR1, CLOCK])
def test_what_asks_to_stop_ends_the_step_saves_and_goes_on_alike(tmp_path: Path, code: int) -> None:
    whole = Regression()
    expected = make(tmp_path / "whole", whole, report_every=4).fit({})
    folder = tmp_path / "parts"
    first = make(folder, Regression(), Asked({3: code}), report_every=4, save_every=100)
    first.fit({})
    words = "the wall-clock limit" if code == CLOCK else signal.Signals(code).name
    assert first.stopped_by == words
    assert first.step == 3
    assert (folder / "checkpoints/latest").read_text() == "step-3"
    assert f"saved and stopped by {words}; the same command" in messages(folder)[-1]
    assert reports(folder, "valid")[-1]["step"] == 3, "what was due was done"

    objective = Regression()
    second = make(folder, objective, report_every=4)
    second.resume("step-3")
    assert second.fit({}) == expected
    assert second.stopped_by is None
    assert torch.equal(whole.linear.weight, objective.linear.weight)
    # The report of step 4 is of all four steps, those before the interruption too.
    timed = {"time", "tokens_per_second", "mfu", "memory_gib", "data_wait_share"}
    for one, other in zip(
        reports(tmp_path / "whole", "train"), reports(folder, "train"), strict=True
    ):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


def test_a_stop_at_a_step_that_is_saved_anyway_saves_once(tmp_path: Path) -> None:
    trainer = make(tmp_path, Regression(), Asked({4: signal.SIGTERM}))
    trainer.fit({})
    assert trainer.stopped_by == "SIGTERM"
    assert (tmp_path / "checkpoints/latest").read_text() == "step-4"


def test_a_stop_at_the_last_step_is_the_end(tmp_path: Path) -> None:
    expected = make(tmp_path / "whole", Regression()).fit({})
    trainer = make(tmp_path / "asked", Regression(), Asked({6: signal.SIGTERM}))
    assert trainer.fit({}) == expected
    assert trainer.stopped_by is None


def test_the_clock_leaves_time_for_a_step_and_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, fragments: Any) -> Written:
        time.sleep(0.2)
        return write(path, fragments)

    monkeypatch.setattr(checkpoint_module, "write", slow)
    asked = Asked({})
    make(tmp_path, Regression(), asked, save_in_background=False, evaluate_every=0).fit({})
    assert asked.margins[0] < 0.4, "nothing was saved yet"
    assert all(margin >= 0.4 for margin in asked.margins[1:]), "twice what the save took"


def full(path: Path, fragments: Any) -> Written:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_that_cannot_be_written_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    objective, whole = Regression(), Regression()
    make(tmp_path / "whole", whole).fit({})

    def fail_at_4(path: Path, fragments: Any) -> Written:
        return full(path, fragments) if "step-4" in str(path) else write(path, fragments)

    monkeypatch.setattr(checkpoint_module, "write", fail_at_4)
    make(tmp_path / "run", objective, save_in_background=background).fit({})
    saved = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert saved == {"step-2", "step-6", "latest"}
    told = [one for one in messages(tmp_path / "run") if "could not be written" in one]
    assert len(told) == 1
    assert "step-4 could not be written: rank 0: [Errno 28] No space left on device" in told[0]
    assert "Training goes on" in told[0]
    assert torch.equal(whole.linear.weight, objective.linear.weight)


def test_too_little_room_does_not_end_a_training_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    last = make(tmp_path, Regression()).fit({})
    assert last
    told = [one for one in messages(tmp_path) if "bytes are needed and 10 are free" in one]
    assert len(told) == 3  # at steps 2, 4 and 6


def test_a_stop_that_cannot_be_saved_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "write", full)
    trainer = make(tmp_path, Regression(), Asked({3: signal.SIGTERM}), save_every=0)
    with pytest.raises(SaveError, match="step-3 could not be written"):
        trainer.fit({})
    assert trainer.stopped_by is None


def test_training_does_not_wait_for_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    objective = Regression()

    def slow(path: Path, fragments: Any) -> Written:
        time.sleep(0.5)
        written.append(objective.steps_seen[-1])
        return write(path, fragments)

    monkeypatch.setattr(checkpoint_module, "write", slow)
    make(tmp_path, objective, save_every=4, evaluate_every=0, steps=6).fit({})
    assert written[0] == 5, "the steps after the save were taken meanwhile"
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} == {"step-4", "step-6"}


def test_every_mth_checkpoint_stays(tmp_path: Path) -> None:
    make(tmp_path, Regression(), save_every=1, keep_checkpoints=1, keep_every=3, steps=7).fit({})
    saved = {path.name for path in (tmp_path / "checkpoints").glob("step-*")}
    assert saved == {"step-3", "step-6", "step-7"}


def test_the_watchdog_hears_of_every_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[tuple[int, str]] = []
    beat: Callable[..., None] = lambda self, step, phase: beats.append((step, phase))  # noqa: E731
    monkeypatch.setattr(Watchdog, "beat", beat)
    make(tmp_path, Regression(), steps=2, evaluate_every=2).fit({})
    both = ["waiting for data", "training"] * 2
    assert [phase for step, phase in beats if step == 0] == both
    after = ["evaluating", "evaluating", "saving"]
    assert [phase for step, phase in beats if step == 2] == after


def test_evaluation_restores_training(tmp_path: Path) -> None:
    objective = Regression()
    trainer = make(tmp_path, objective)
    trainer.evaluate()
    assert objective.training


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("batch_size", 0), ("batch_warmup", [[0, 2]]),
     ("lengths", [[1, 8]]), ("micro_batch_size", -1), ("save_every", -1),
     ("learning_rate", 0.0), ("gradient_clipping", -1.0), ("keep_checkpoints", 0),
     ("keep_every", -1), ("stop_before_hours", 0.0), ("timeout_seconds", 0.0)],
)  # fmt: skip
def test_impossible_numbers_are_refused_by_key(key: str, value: float) -> None:
    tree = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 0.1, key: value}
    with pytest.raises(ConfigError, match=key):
        parse(TrainConfig, tree, "test")
