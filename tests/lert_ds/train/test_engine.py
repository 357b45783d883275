import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from lert_ds import distributed
from lert_ds.errors import ConfigError
from lert_ds.objective import Batch, StepOutput
from lert_ds.train import deepspeed_config
from lert_ds.train.engine import Engine, NonFiniteError
from lert_ds.train.fragments import Fragments, write
from lert_ds.train.optim import OptimizerConfig

ROOT = Path(__file__).parents[3]
RATE = 0.1


class Plain(nn.Module):
    """A matrix and a bias with a loss whose gradient is known: the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.constant_(self.linear.bias, 0.25)

    def forward(self, batch: Batch, *, step: int) -> StepOutput:
        inputs = batch.input_ids.to(self.linear.weight.dtype)
        loss = self.linear(inputs).float().sum()
        return StepOutput(loss, {"loss": torch.stack([loss.detach(), torch.ones(())])})


pytestmark = pytest.mark.usefixtures("process_group")


def batch(values: list[float]) -> Batch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(torch.tensor([values]), None, nothing, nothing, {})


def start(
    machine: str | Path, *, optimizer: OptimizerConfig | None = None, clipping: float = 0.0
) -> Engine:
    owned = {
        "train_batch_size": 1,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clipping,
    }
    path = machine if isinstance(machine, Path) else ROOT / "ds_configs" / f"{machine}.json"
    tree = deepspeed_config.resolve(path, owned)
    return Engine(Plain(), optimizer or OptimizerConfig(), tree)


def update(engine: Engine, values: list[float]) -> None:
    engine.set_learning_rate(RATE)
    output = engine(batch(values), step=0)
    engine.backward(output.loss)
    engine.step()


def lert_adamw(weight: Tensor, gradients: list[Tensor], decay: float) -> Tensor:
    """AdamW without bias correction, as in `optimization.py` of ymcui/LERT."""
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for gradient in gradients:
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        weight = weight - RATE * (mean / (square.sqrt() + 1e-6) + decay * weight)
    return weight


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_the_first_updates_follow_the_formula(stage: str, precision: str) -> None:
    # DeepSpeed 0.19 takes a stray step in bf16 with ZeRO 0: it decayed the weights and spoilt Adam.
    engine = start(f"{stage}_{precision}")
    inputs = [[1.0, 2.0, -1.0, 0.5], [0.5, -2.0, 1.0, 0.25]]
    for values in inputs:
        update(engine, values)
    gradients = [torch.tensor(values).repeat(3, 1) for values in inputs]
    weights = engine.full_weights()
    master = precision == "fp32" or stage != "zero0"  # ZeRO 0 in bf16 keeps its master to itself
    tolerance = 1e-5 if master else 1e-2
    expected = lert_adamw(torch.full((3, 4), 0.5), gradients, decay=0.01)
    torch.testing.assert_close(weights["linear.weight"], expected, atol=tolerance, rtol=tolerance)
    expected = lert_adamw(torch.full((3,), 0.25), [torch.ones(3)] * 2, decay=0.0)
    torch.testing.assert_close(weights["linear.bias"], expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("power", [0, 10])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_loss_scale_changes_no_update(
    stage: int, power: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # DeepSpeed 0.19 scaled no loss with ZeRO 0, but its gradients back: 2^10 times too small.
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    fp16 = {"enabled": True, "initial_scale_power": power}
    path = tmp_path / "fp16.json"
    path.write_text(json.dumps({"fp16": fp16, "zero_optimization": {"stage": stage}}))
    engine = start(path)
    update(engine, [1e-3, -2e-3, 1e-3, 5e-4])
    moments = engine.snapshot(copy=True)[0]["linear.weight"].tensors
    gradient = torch.tensor([1e-3, -2e-3, 1e-3, 5e-4]).repeat(3)
    torch.testing.assert_close(moments["exp_avg"], 0.1 * gradient, rtol=1e-2, atol=0)
    assert engine.state_of_scaling()["loss_scale"] == 2**power
    expected = lert_adamw(torch.full((12,), 0.5), [gradient], decay=0.01)
    torch.testing.assert_close(moments["weights"], expected, rtol=1e-2, atol=1e-3)


def test_offload_updates_by_the_same_formula() -> None:
    engine = start("zero2_bf16_offload")
    update(engine, [1.0, 2.0, -1.0, 0.5])
    gradient = torch.tensor([1.0, 2.0, -1.0, 0.5]).repeat(3, 1)
    expected = lert_adamw(torch.full((3, 4), 0.5), [gradient], decay=0.01)
    torch.testing.assert_close(
        engine.full_weights()["linear.weight"], expected, atol=1e-5, rtol=1e-5
    )


def test_the_gradient_norm_is_of_the_whole_gradient() -> None:
    engine = start("zero2_fp32", clipping=1.0)
    update(engine, [1.0, 2.0, -1.0, 0.5])
    norm = (3 * (1 + 4 + 1 + 0.25) + 3) ** 0.5
    assert engine.state_of_scaling()["gradient_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("machine", ["zero0_fp32", "zero0_bf16"])
def test_one_process_does_not_copy_its_gradients_to_sum_them(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = start(machine)
    copied: list[int] = []
    monkeypatch.setattr(engine._engine, "allreduce_and_copy", lambda *_: copied.append(1))
    update(engine, [1.0, 2.0, -1.0, 0.5])
    assert not copied


@pytest.mark.parametrize("machine", ["zero0_fp32", "zero2_bf16", "zero3_fp32"])
def test_a_non_finite_gradient_stops_before_the_optimizer(machine: str) -> None:
    engine = start(machine)
    update(engine, [1.0, 2.0, -1.0, 0.5])
    before = engine.full_weights()
    with pytest.raises(NonFiniteError, match="a gradient is inf or nan"):
        update(engine, [1.0, float("nan"), -1.0, 0.5])
    after = engine.full_weights()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.parametrize("name", ["lamb", "lion"])
def test_other_optimizers_by_name(name: str) -> None:
    engine = start("zero0_fp32", optimizer=OptimizerConfig.model_validate({"name": name}))
    update(engine, [1.0, 2.0, -1.0, 0.5])
    weight = engine.full_weights()["linear.weight"]
    assert not torch.equal(weight, torch.full((3, 4), 0.5))
    if name == "lion":
        sign = torch.tensor([1.0, 1.0, -1.0, 1.0]).repeat(3, 1)
        expected = torch.full((3, 4), 0.5) * (1 - RATE * 0.01) - RATE * sign
        torch.testing.assert_close(weight, expected)


def test_lion_runs_on_partitions() -> None:
    engine = start("zero2_fp32", optimizer=OptimizerConfig.model_validate({"name": "lion"}))
    update(engine, [1.0, 2.0, -1.0, 0.5])
    assert engine.full_weights()["linear.bias"] == pytest.approx([0.25 - RATE] * 3)


def test_lamb_under_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="lamb with ZeRO stage 2: its trust ratio needs whole"):
        start("zero2_bf16", optimizer=OptimizerConfig.model_validate({"name": "lamb"}))


@pytest.mark.parametrize("machine", ["zero0_fp32", "zero1_bf16", "zero2_fp32", "zero3_bf16"])
def test_a_saved_engine_goes_on_where_it_was(machine: str, tmp_path: Path) -> None:
    # More of it, for every stage and precision: test_optimizer_layout.py.
    inputs = [[1.0, 2.0, -1.0, 0.5], [0.5, -2.0, 1.0, 0.25], [2.0, 1.0, 1.0, -1.0]]
    engine = start(machine)
    update(engine, inputs[0])
    update(engine, inputs[1])
    fragments, numbers = engine.snapshot(copy=True)
    write(tmp_path / "here", fragments)
    update(engine, inputs[2])
    expected = engine.full_weights()
    resumed = start(machine)
    resumed.restore(Fragments([tmp_path / "here"]), numbers)
    update(resumed, inputs[2])
    found = resumed.full_weights()
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 0), (3, 0), (2, 1)])
def test_what_all_have_is_dealt_out(
    world: int, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(f"zero{stage}_fp32")
    update(engine, [1.0, 2.0, -1.0, 0.5])
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    held = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        held += list(engine.snapshot(copy=True)[0])
    # Partitions are each process's own: here both are asked of the one process there is.
    times = 1 if stage == 0 else world
    assert sorted(held) == sorted(["linear.weight", "linear.bias"] * times)


def test_deepspeed_refuses_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "contiguos_gradients": True}}))
    tree = deepspeed_config.resolve(path, {"train_batch_size": 1})
    with pytest.raises(ConfigError, match="contiguos_gradients"):
        Engine(Plain(), OptimizerConfig(), tree)


MACHINES = [
    *(f"zero{stage}_{precision}" for precision in ("fp32", "bf16") for stage in range(3)),
    "zero1_autocast", "zero2_bf16_offload", "zero3_fp32", "zero3_bf16",
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_the_batch_changes_between_updates(machine: str) -> None:
    """Adam's first moment is that of the mean gradient of each batch, whatever its size."""
    owned = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.0,
    }
    path = ROOT / "ds_configs" / f"{machine}.json"
    engine = Engine(Plain(), OptimizerConfig(), deepspeed_config.resolve(path, owned))
    engine.set_learning_rate(RATE)
    expected, number = torch.zeros(4), 0
    for size in (1, 4, 4, 2, 3, 1):
        engine.set_batch_size(size)
        assert engine.accumulation == size
        total = torch.zeros(4)
        for place in range(size):
            values = [float(number % 5), 2.0, -1.0, float(number % 3)]
            number += 1
            engine.backward(engine(batch(values), step=0).loss)
            assert engine.at_boundary() == (place == size - 1)
            engine.step()
            total += torch.tensor(values)
        expected = 0.9 * expected + 0.1 * total / size
    found = engine.snapshot(copy=True)[0]["linear.weight"].tensors["exp_avg"].view(3, 4)
    tolerance = 1e-6 if machine.endswith("fp32") else 1e-2
    torch.testing.assert_close(found, expected.repeat(3, 1), rtol=tolerance, atol=tolerance)
