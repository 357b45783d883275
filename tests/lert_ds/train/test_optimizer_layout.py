"""Held to real DeepSpeed engines of one process; two processes: test_resume_launch.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from lert_ds.errors import CheckpointError
from lert_ds.objective import Batch, StepOutput
from lert_ds.train import deepspeed_config
from lert_ds.train.engine import Engine
from lert_ds.train.fragments import WEIGHTS, Fragments, write
from lert_ds.train.optim import OptimizerConfig
from lert_ds.train.optimizer_layout import OptimizerLayout

ROOT = Path(__file__).parents[3]
KINDS = {"exp_avg", "exp_avg_sq"}
MACHINES = [
    *(f"zero{stage}_{precision}" for precision in ("fp32", "bf16", "fp16") for stage in range(3)),
    "zero1_autocast", "zero2_bf16_offload", "zero3_fp32", "zero3_bf16", "zero3_fp16",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("process_group")


class Net(nn.Module):
    """Parameters of odd sizes, one that no loss reaches, one that is frozen."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(7, 5)
        self.dense = nn.Linear(5, 3)
        self.unused = nn.Linear(2, 1)
        self.temperature = nn.Parameter(torch.randn(1))
        self.frozen = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]), requires_grad=False)

    def forward(self, batch: Batch, *, step: int) -> StepOutput:
        hidden = self.dense(self.embedding(batch.input_ids)) * self.temperature
        loss = (hidden.float() - self.frozen.float()).square().mean()
        return StepOutput(loss, {})


TRAINED = {
    "embedding.weight": (7, 5), "dense.weight": (3, 5), "dense.bias": (3,),
    "unused.weight": (1, 2), "unused.bias": (1,), "temperature": (1,),
}  # fmt: skip

Start = Callable[..., Engine]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Make an engine on a machine: name, seed of the first weights, steps that it takes."""
    # DeepSpeed takes fp16 where the processor multiplies it itself; torch computes it on any.
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)

    def make(machine: str, *, seed: int = 0, steps: int = 0, optimizer: str = "adamw") -> Engine:
        path = ROOT / "ds_configs" / f"{machine}.json"
        if machine.endswith("fp16"):
            path = tmp_path / f"{machine}.json"
            # So high that the first steps overflow and the scale moves.
            fp16 = {"enabled": True, "initial_scale_power": 18, "loss_scale_window": 2}
            stage = int(machine[4])
            path.write_text(json.dumps({"fp16": fp16, "zero_optimization": {"stage": stage}}))
        owned = {
            "train_batch_size": 2,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 1.0,
        }
        config = OptimizerConfig.model_validate({"name": optimizer})
        engine = Engine(Net(seed), config, deepspeed_config.resolve(path, owned))
        for step in range(steps):
            train(engine, step)
        return engine

    return make


def train(engine: Engine, step: int) -> None:
    """Take one optimizer step, on two micro-batches that depend on its number alone."""
    nothing = torch.zeros(0, dtype=torch.int64)
    engine.set_learning_rate(0.1)
    for part in range(2):
        ids = torch.tensor([[(3 * step + part) % 7, (5 * step + 2 * part) % 7]])
        engine.backward(engine(Batch(ids, None, nothing, nothing, {}), step=step).loss)
        engine.step()


def save(engine: Engine, path: Path) -> tuple[Fragments, dict[str, float]]:
    fragments, numbers = engine.snapshot(copy=True)
    write(path, fragments)
    return Fragments([path]), json.loads(json.dumps(numbers))


def everything(engine: Engine, path: Path) -> dict[str, torch.Tensor]:
    """Return weights and moments, whole, by kind and name."""
    saved, _ = save(engine, path)
    return {f"{kind}/{n}": saved.whole(n, kind) for kind in saved.kinds for n in saved.shapes}


def check_that_they_tile(layout: OptimizerLayout) -> None:
    """Check that the pieces cover each number of every trained parameter once."""
    counts = {name: torch.zeros(shape).flatten() for name, shape in TRAINED.items()}
    for piece in layout.pieces:
        assert piece.shape == TRAINED[piece.name]
        counts[piece.name][piece.start : piece.start + piece.length] += 1
    assert all((count == 1).all() for count in counts.values())


@pytest.mark.parametrize("machine", MACHINES)
def test_the_pieces_tile_the_parameters_and_hold_what_deepspeed_says(
    start: Start, machine: str, tmp_path: Path
) -> None:
    # In fp16 the first steps overflow, are skipped, and lower the scale.
    engine: Any = start(machine, steps=9 if machine.endswith("fp16") else 3)
    layout = OptimizerLayout(engine._engine)
    check_that_they_tile(layout)
    assert layout.replicated == machine.startswith("zero0")
    saved, _ = save(engine, tmp_path / "file")
    assert saved.kinds == {WEIGHTS} | KINDS
    assert saved.shapes == TRAINED
    compared = set()
    for name, parameter in engine._engine.module.named_parameters():
        if name == "frozen":
            continue
        weight = safe_get_full_fp32_param(parameter)
        if weight is None:  # ZeRO 0 in fp32 has no copy: the parameter is it; others keep it apart
            master = engine.precision not in ("bf16", "fp16")
            close = 0.0 if master else 1e-2
            torch.testing.assert_close(
                saved.whole(name), parameter.detach().float(), rtol=close, atol=close
            )
        else:
            assert torch.equal(saved.whole(name), weight.reshape(TRAINED[name])), name
        for kind in KINDS:
            try:
                known = safe_get_full_optimizer_state(parameter, kind)
            except ValueError:  # under ZeRO 1 and 2 DeepSpeed knows those of the first group alone
                continue
            if known is not None:
                compared.add(name)
                assert torch.equal(saved.whole(name, kind), known.reshape(TRAINED[name])), name
    assert saved.whole("dense.weight", "exp_avg").abs().sum() > 0
    if not machine.startswith("zero0"):
        assert {"embedding.weight", "dense.weight", "unused.weight"} <= compared


def reference(engine: Any) -> torch.optim.Optimizer:
    optimizer = engine._engine.optimizer
    found: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def test_without_partitions_they_hold_what_the_optimizer_says(start: Start, tmp_path: Path) -> None:
    engine: Any = start("zero0_fp32", steps=3)
    saved, _ = save(engine, tmp_path / "file")
    for name, parameter in engine._engine.module.named_parameters():
        if name != "frozen":
            for kind in KINDS:
                known = reference(engine).state[parameter][kind]
                assert torch.equal(saved.whole(name, kind), known)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_restored_engine_goes_on_bit_for_bit(start: Start, machine: str, tmp_path: Path) -> None:
    steps = 9 if machine.endswith("fp16") else 3
    engine = start(machine, steps=steps)
    fragments, numbers = save(engine, tmp_path / "saved")
    resumed = start(machine, seed=1)
    resumed.restore(fragments, numbers)
    assert resumed.snapshot(copy=True)[1] == engine.snapshot(copy=True)[1]
    for one in (engine, resumed):
        for step in range(steps, steps + 4):
            train(one, step)
    expected = everything(engine, tmp_path / "whole")
    found = everything(resumed, tmp_path / "resumed")
    assert found.keys() == expected.keys()
    # What no loss reaches decays alike; what is frozen is no part of a checkpoint.
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert resumed.state_of_scaling() == engine.state_of_scaling()
    if machine.endswith("fp16"):
        assert engine.state_of_scaling()["skipped_steps"] > 0, "else the scale did not move"


@pytest.mark.parametrize(
    ("before", "after"),
    [("zero2_fp32", "zero3_fp32"), ("zero3_fp32", "zero1_fp32"), ("zero1_fp32", "zero0_fp32"),
     ("zero0_bf16", "zero3_bf16"), ("zero3_bf16", "zero0_bf16"), ("zero1_autocast", "zero2_bf16"),
     ("zero2_fp16", "zero0_bf16"), ("zero0_fp16", "zero2_bf16_offload")],
)  # fmt: skip
def test_another_stage_or_precision_takes_it_over(
    start: Start, before: str, after: str, tmp_path: Path
) -> None:
    engine = start(before, steps=9 if before.endswith("fp16") else 3)
    fragments, numbers = save(engine, tmp_path / "saved")
    resumed = start(after, seed=1)
    resumed.restore(fragments, numbers)
    expected = everything(engine, tmp_path / "expected")
    found = everything(resumed, tmp_path / "found")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    # The module computes with them, not only the optimizer.
    same = before.partition("_")[2] == after.partition("_")[2]
    batch = Batch(torch.tensor([[1, 4, 6]]), None, *[torch.zeros(0, dtype=torch.int64)] * 2, {})
    losses = []
    for one in (engine, resumed, start(after, seed=1)):
        one.train(False)
        with torch.no_grad():
            losses.append(float(one(batch, step=0).loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6 if same else 0.03)
    assert losses[2] != pytest.approx(losses[0], rel=0.1), "else it shows nothing"
    train(resumed, 3)


@pytest.mark.parametrize("machine", ["zero0_fp32", "zero0_bf16", "zero2_bf16", "zero3_fp32"])
def test_a_checkpoint_before_the_first_step_restores(
    start: Start, machine: str, tmp_path: Path
) -> None:
    engine = start(machine)
    fragments, numbers = save(engine, tmp_path / "saved")
    resumed = start(machine, seed=1)
    resumed.restore(fragments, numbers)
    for one in (engine, resumed):
        train(one, 0)
    expected = everything(engine, tmp_path / "whole")
    found = everything(resumed, tmp_path / "resumed")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["lion", "lamb"])
def test_other_optimizers_go_on_bit_for_bit(start: Start, name: str, tmp_path: Path) -> None:
    machine = "zero0_bf16" if name == "lamb" else "zero2_fp32"
    engine = start(machine, steps=3, optimizer=name)
    fragments, numbers = save(engine, tmp_path / "saved")
    assert fragments.kinds == {WEIGHTS, "exp_avg"} | ({"exp_avg_sq"} if name == "lamb" else set())
    resumed = start(machine, seed=1, optimizer=name)
    resumed.restore(fragments, numbers)
    for one in (engine, resumed):
        train(one, 3)
    expected = everything(engine, tmp_path / "whole")
    found = everything(resumed, tmp_path / "resumed")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_counts_are_restored(start: Start, tmp_path: Path) -> None:
    engine: Any = start("zero2_fp32", steps=3)
    resumed: Any = start("zero2_fp32")
    resumed.restore(*save(engine, tmp_path / "saved"))
    for name in ("global_steps", "micro_steps", "global_samples", "skipped_steps"):
        assert getattr(resumed._engine, name) == getattr(engine._engine, name), name
    assert resumed._engine.global_steps == 3


def test_a_snapshot_is_a_copy_where_that_is_asked_for(start: Start) -> None:
    engine = start("zero2_fp32", steps=1)
    copied, _ = engine.snapshot(copy=True)
    seen, _ = engine.snapshot(copy=False)
    before = copied["dense.weight"].tensors[WEIGHTS].clone()
    train(engine, 1)
    assert torch.equal(copied["dense.weight"].tensors[WEIGHTS], before)
    assert not torch.equal(seen["dense.weight"].tensors[WEIGHTS], before)


def test_a_checkpoint_of_another_shape_is_refused_by_the_parameter(
    start: Start, tmp_path: Path
) -> None:
    engine = start("zero2_fp32", steps=1)
    fragments, numbers = engine.snapshot(copy=True)
    place = fragments["dense.bias"].place._replace(shape=(4,))
    fragments["dense.bias"] = fragments["dense.bias"]._replace(place=place)
    write(tmp_path / "other", fragments)
    with pytest.raises(CheckpointError, match=r"has dense.bias of shape \[3\], .* of \[4\]; resum"):
        engine.restore(Fragments([tmp_path / "other"]), numbers)
    del fragments["dense.bias"]
    write(tmp_path / "less", fragments)
    with pytest.raises(CheckpointError, match=r"dense.bias of shape \[3\], the checkpoint none"):
        engine.restore(Fragments([tmp_path / "less"]), numbers)
