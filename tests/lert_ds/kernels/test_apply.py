"""What is chosen on which device, and whole models with kernels inside against plain ones."""

import copy
import dataclasses
import functools
import json
import logging
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention

from lert_ds.errors import ConfigError
from lert_ds.kernels import apply, cpu_ops, modules, products
from lert_ds.kernels.apply import Kernels, choose, use_kernels
from lert_ds.kernels.cheap_dropout import CheapDropout
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.kernels.modules import CompiledLayer, FusedSelfAttention, ReplayedLayer
from lert_ds.pretraining_objective import LipConfig, PretrainingObjective
from lert_ds.train import deepspeed_config
from lert_ds.train.engine import Engine
from lert_ds.train.optim import OptimizerConfig

ROOT = Path(__file__).parents[3]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
FUSED = Kernels(
    attention="fused", qkv="fused", activation="fused", residual="fused", loss="fused",
    dropout="lots", products="onednn" if products.prefers_onednn() else "plain", compile="off",
    cuda_graphs=False, fp8="off",
)  # fmt: skip
PLAIN = Kernels(
    attention="plain", qkv="plain", activation="plain", residual="plain", loss="plain",
    dropout="plain", products="plain", compile="off", cuda_graphs=False, fp8="off",
)  # fmt: skip
PRUNED = {"layer_attention_heads": [0, 1, 3], "layer_intermediate_sizes": [64, 0, 17]}
SHAPES = pytest.mark.parametrize("shape", [{}, PRUNED], ids=["full", "pruned"])
STEPS = 200


def config_of(**names: Any) -> KernelsConfig:
    return KernelsConfig(**names)


def all_plain(**names: Any) -> KernelsConfig:
    asked = {n: "off" if n == "compile" else "plain" for n in apply._CPU}
    return KernelsConfig(**(asked | names))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch could build nothing here, and nothing were built yet."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr(cpu_ops.op_builds.cpp_extension, "load", refuse)
    monkeypatch.setattr(cpu_ops.op_builds, "wait_for_builds", lambda: None)  # others' builds
    monkeypatch.setattr(cpu_ops, "load", functools.cache(cpu_ops.load.__wrapped__))


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU that multiplies in 8 bits."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(apply.importlib.util, "find_spec", lambda name: name)


@pytest.mark.usefixtures("native")
def test_on_a_processor_all_is_fused(caplog: pytest.LogCaptureFixture) -> None:
    assert choose(config_of(), CPU) == FUSED
    assert choose(config_of(), CPU, stage=3, lengths_vary=True) == FUSED
    assert not caplog.records


@pytest.mark.parametrize(
    ("run", "differs"),
    [
        ({}, {}),
        ({"stage": 3}, {"compile": "off", "activation": "fused", "residual": "fused"}),
        ({"lengths_vary": True}, {"compile": "off", "activation": "fused", "residual": "fused"}),
        ({"parts_documents": True}, {"attention": "varlen"}),
    ],
    ids=str,
)
def test_on_a_gpu_layers_are_compiled(
    run: dict[str, Any], differs: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    expected = dataclasses.replace(PLAIN, loss="fused", compile="layers")
    assert choose(config_of(), GPU, **run) == dataclasses.replace(expected, **differs)
    assert not caplog.records


def test_a_compiler_on_a_processor_gets_what_it_can_see_into() -> None:
    expected = dataclasses.replace(PLAIN, loss="fused", compile="layers")
    assert choose(config_of(compile="layers"), CPU) == expected


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("run", [{}, {"half": True}, {"lengths_vary": True}], ids=str)
@pytest.mark.usefixtures("native")
def test_nothing_is_left_to_be_chosen(device: torch.device, stage: int, run: Any) -> None:
    kernels = choose(config_of(), device, stage=stage, **run)
    for name, value in dataclasses.asdict(kernels).items():
        choices = typing.get_args(KernelsConfig.model_fields[name].annotation)
        assert value != "auto"
        assert value in choices or isinstance(value, bool), (name, value)
        assert f"{name} {value}" in kernels.describe()


CHOICES = [
    (field, name)
    for field, info in KernelsConfig.model_fields.items()
    for name in typing.get_args(info.annotation)
    if (field, name) != ("fp8", "torchao")
]


@pytest.mark.parametrize(("field", "name"), CHOICES)
@pytest.mark.usefixtures("native")
def test_every_name_is_one_of_something(lert: Callable[..., Any], field: str, name: str) -> None:
    for device in (CPU, GPU):
        model = lert()
        use_kernels(model, choose(config_of(**{field: name}), device))
        implementation = model.config._attn_implementation
        assert implementation in ALL_ATTENTION_FUNCTIONS
        assert implementation in ALL_MASK_ATTENTION_FUNCTIONS
    asked = getattr(choose(all_plain(**{field: name}), CPU), field)
    if name not in ("auto", "varlen"):  # varlen: on a GPU alone
        assert asked == name


REPLACED = [
    ({"attention": "varlen"}, CPU, {}, "attention", "fused", "attention: varlen is for GPUs"),
    ({"attention": "fused"}, GPU, {}, "attention", "plain", "attention: fused is for processors"),
    ({"attention": "lots"}, GPU, {}, "attention", "plain", "attention: lots is for processors"),
    ({"compile": "layers"}, GPU, {"stage": 3}, "compile", "off", "compile: ZeRO-3 gathers"),
    ({"cuda_graphs": True}, CPU, {}, "cuda_graphs", False, "cuda_graphs: only compiled layers"),
    ({"cuda_graphs": True, "compile": "off"}, GPU, {}, "cuda_graphs", False, "cuda_graphs: only"),
    (
        {"compile": "layers", "attention": "fused"}, CPU, {}, "compile", "off",
        "compile: a compiler cannot see into attention=fused",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "device", "run", "field", "gets", "said"), REPLACED)
@pytest.mark.usefixtures("native")
def test_what_cannot_be_is_replaced_aloud(
    asked: Any, device: torch.device, run: Any, field: str, gets: Any, said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING):
        kernels = choose(config_of(**asked), device, **run)
        choose(config_of(**asked), device, **run)
    assert getattr(kernels, field) == gets
    (record,) = caplog.records  # once in a process
    assert record.message.startswith(f"kernels: {said}")


@pytest.mark.usefixtures("h100")
def test_what_is_there_is_used(caplog: pytest.LogCaptureFixture) -> None:
    asked = config_of(fp8="torchao", cuda_graphs=True, attention="varlen")
    kernels = choose(asked, GPU)
    assert (kernels.fp8, kernels.cuda_graphs, kernels.attention) == ("torchao", True, "varlen")
    assert not caplog.records


@pytest.mark.parametrize(
    ("device", "capability", "found", "said"),
    [
        (CPU, (9, 0), True, "kernels.fp8: this device does not multiply in 8 bits"),
        (GPU, (8, 0), True, "kernels.fp8: this device does not multiply in 8 bits"),
        (GPU, (8, 9), False, "kernels.fp8 = torchao: pip install torchao"),
    ],
)
def test_8_bits_are_refused_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, capability: Any, found: bool, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(apply.importlib.util, "find_spec", lambda name: name if found else None)
    with pytest.raises(ConfigError, match=f"^{said}.*kernels.fp8=off$"):
        choose(config_of(fp8="torchao"), device)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_is_said_once_and_trains_with_lots(
    lert: Callable[..., Any], lert_batch: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        kernels = choose(config_of(), CPU)
        model = lert(dropout=0.1)
        use_kernels(model, kernels)
        objective = PretrainingObjective(model, LipConfig(), 10, fused_loss=True)
        objective(lert_batch(), step=1).loss.backward()
        choose(config_of(), CPU)
    assert kernels == dataclasses.replace(
        FUSED, attention="lots", activation="plain", residual="plain"
    )
    assert all(parameter.grad is not None for parameter in model.parameters())
    (record,) = caplog.records
    assert "could not be built, so the slower kernels train: Ninja is required" in record.message


def test_what_pruning_took_apart_stays(lert: Callable[..., Any]) -> None:
    model = lert(**PRUNED)
    before = {name: type(module) for name, module in model.named_modules()}
    use_kernels(model, FUSED)
    after = {name: type(module) for name, module in model.named_modules()}
    path = "bert.encoder.layer.{}.attention.self"
    assert after[path.format(0)] is before[path.format(0)] is not BertSelfAttention
    assert after[path.format(1)] is FusedSelfAttention
    assert nn.Dropout not in after.values()
    assert CheapDropout in after.values()


def test_compiled_layers_are_replayed_where_that_is_asked(lert: Callable[..., Any]) -> None:
    for graphs, kind in ((False, CompiledLayer), (True, ReplayedLayer)):
        model = lert()
        use_kernels(model, dataclasses.replace(PLAIN, compile="layers", cuda_graphs=graphs))
        layers = [module for module in model.modules() if isinstance(module, BertLayer)]
        assert [type(layer) for layer in layers] == [kind] * 3


@SHAPES
def test_no_weight_and_no_name_changes_and_no_folder_remembers(
    lert: Callable[..., Any], tmp_path: Path, shape: Any
) -> None:
    plain = lert(**shape)
    fused = copy.deepcopy(plain)
    use_kernels(fused, dataclasses.replace(FUSED, compile="layers"))
    weights = plain.state_dict()
    assert list(fused.state_dict()) == list(weights)
    assert all(torch.equal(weights[name], value) for name, value in fused.state_dict().items())
    for name, model in (("plain", plain), ("fused", fused)):
        model.save_pretrained(tmp_path / name)
    texts = [(tmp_path / name / "config.json").read_text("utf-8") for name in ("plain", "fused")]
    assert json.loads(texts[0]) == json.loads(texts[1])
    assert "attn_implementation" not in texts[1]
    again = type(plain).from_pretrained(tmp_path / "fused")
    assert again.config._attn_implementation == "sdpa"


def objective_of(model: Any, kernels: Kernels) -> PretrainingObjective:
    model = copy.deepcopy(model)
    use_kernels(model, kernels)
    return PretrainingObjective(model, LipConfig(), 10, fused_loss=kernels.loss == "fused")


@SHAPES
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.usefixtures("native")
def test_a_whole_model_has_the_same_losses_and_gradients(
    lert: Callable[..., Any], lert_batch: Callable[..., Any], shape: Any, padded: bool,
    checkpointing: bool, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model, batch = lert(**shape), lert_batch(padded=padded)
    results = []
    for kernels in (FUSED, PLAIN):
        objective = objective_of(model, kernels)
        if checkpointing:
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})
        output = objective(batch, step=5)
        output.loss.backward()
        evaluated = objective.eval()(batch, step=5)
        results.append((output, evaluated, dict(objective.named_parameters())))
    (ours, our_evaluation, our_weights), (theirs, their_evaluation, their_weights) = results
    for found, expected in ((ours, theirs), (our_evaluation, their_evaluation)):
        torch.testing.assert_close(found.loss, expected.loss, rtol=2e-6, atol=0)
        assert found.metrics.keys() == expected.metrics.keys()
        for name, pair in expected.metrics.items():
            torch.testing.assert_close(found.metrics[name], pair, rtol=1e-5, atol=1e-5)
    for name, weight in their_weights.items():
        scale = float(weight.grad.abs().max().clamp_min(1e-2))
        torch.testing.assert_close(
            our_weights[name].grad, weight.grad, rtol=1e-4, atol=1e-5 * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
    assert not caplog.records  # nothing fell back


def losses_of(objective: nn.Module, batches: list[Any], steps: int, half: bool) -> Tensor:
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(batches[step % len(batches)], step=step % 10).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@SHAPES
@pytest.mark.usefixtures("native")
def test_under_autocast_it_trains_alike(
    lert: Callable[..., Any], lert_batch: Callable[..., Any], shape: Any
) -> None:
    model = lert(**shape)
    batches = [lert_batch(seed) for seed in range(4)]
    exact, plain, fused = (
        losses_of(objective_of(model, kernels), batches, 30, half)
        for kernels, half in ((PLAIN, False), (PLAIN, True), (FUSED, True))
    )
    assert exact[-4:].mean() < exact[:4].mean() - 0.5  # it learns
    # As near to float32 as plain bf16 is, at every step.
    noise = (plain - exact).abs().max()
    assert (fused - exact).abs().max() < 2 * noise + 1e-3
    assert noise < 0.1


def engine_of(objective: nn.Module, machine: str) -> Engine:
    owned = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
    }
    tree = deepspeed_config.resolve(ROOT / "ds_configs" / f"{machine}.json", owned)
    return Engine(objective, OptimizerConfig(), tree)


def trained(engine: Engine, batches: list[Any], steps: int) -> Tensor:
    losses = []
    for step in range(steps):
        engine.set_learning_rate(1e-3)
        loss = engine(batches[step % len(batches)], step=step % 10).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.parametrize(
    ("machine", "falls_back"),
    [("zero0_fp32", False), ("zero2_fp32", False), ("zero2_bf16", False), ("zero3_fp32", True)],
)
@pytest.mark.usefixtures("native", "process_group")
def test_under_an_engine_it_trains_alike(
    lert: Callable[..., Any], lert_batch: Callable[..., Any], machine: str, falls_back: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """ZeRO-3 gathers weights where modules are called, so there they are."""
    said: set[str] = set()
    monkeypatch.setattr(modules, "_told", said)
    model, batches = lert(), [lert_batch(seed) for seed in range(4)]
    fused, plain = (
        trained(engine_of(objective_of(model, kernels), machine), batches, 6)
        for kernels in (FUSED, PLAIN)
    )
    tolerance = 3e-2 if machine.endswith("bf16") else 1e-5
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=0)
    assert bool(said) == falls_back, said


@pytest.mark.slow
@pytest.mark.usefixtures("native", "process_group")
def test_two_hundred_steps_end_within_noise_of_one_another(
    lert: Callable[..., Any], lert_batch: Callable[..., Any]
) -> None:
    """With dropout masks differ; two seeds of one kind end up to 0.4 apart, at 1.1 from 9.1."""
    batches = [lert_batch(seed, instances=4) for seed in range(4)]
    ends: dict[Kernels, list[float]] = {FUSED: [], PLAIN: []}
    for kernels, found in ends.items():
        for seed in range(2):
            objective = objective_of(lert(dropout=0.1, num_hidden_layers=2), kernels)
            torch.manual_seed(100 + seed)
            engine = engine_of(objective, "cpu_fp32")
            first = trained(engine, batches, STEPS)[:4].mean().item()
            objective.eval()
            with torch.no_grad():
                losses = [objective(batch, step=9).loss.item() for batch in batches]
            found.append(sum(losses) / len(losses))
            assert found[-1] < first - 3
    fused, plain = (sum(found) / len(found) for found in ends.values())
    assert abs(fused - plain) < 0.5


@pytest.mark.usefixtures("native", "process_group")
def test_under_an_engine_layers_are_compiled_once(
    lert: Callable[..., Any], lert_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(modules._forward_of_layer, backend="aot_eager", dynamic=False)
    monkeypatch.setattr(CompiledLayer, "_compiled", staticmethod(compiled))
    batches = [lert_batch(seed, instances=4) for seed in range(2)]
    model, counts = lert(num_hidden_layers=4, dropout=0.1), []
    kernels = choose(config_of(compile="layers"), CPU, stage=2)
    engine = engine_of(objective_of(model, kernels), "zero2_fp32")
    for _ in range(3):
        engine.train()
        trained(engine, batches, 2)
        engine.train(False)
        with torch.no_grad():
            engine(batches[0], step=0)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts == [2, 2, 2]  # one to train, one to evaluate, for all of the four layers
    torch._dynamo.reset()


def test_a_models_limit_of_compilations_grows_with_its_layers(lert: Callable[..., Any]) -> None:
    with torch._dynamo.config.patch(recompile_limit=8):
        use_kernels(lert(num_hidden_layers=12), dataclasses.replace(PLAIN, compile="layers"))
        assert torch._dynamo.config.recompile_limit >= 4 * 12
        use_kernels(lert(num_hidden_layers=1), dataclasses.replace(PLAIN, compile="layers"))
        assert torch._dynamo.config.recompile_limit >= 4 * 12  # never less
