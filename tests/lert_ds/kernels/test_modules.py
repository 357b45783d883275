"""BERT's modules with kernels inside, against BERT's own; and layers that are compiled."""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import (
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertSelfAttention,
    BertSelfOutput,
)

from lert_ds.kernels import attention, cheap_dropout, modules, varlen
from lert_ds.kernels.modules import (
    CompiledLayer,
    FusedIntermediate,
    FusedOutput,
    FusedSelfAttention,
    FusedSelfOutput,
    ReplayedLayer,
    become,
    is_plain,
    tell,
)
from lert_ds.kernels.seed import draw_seed

PARTS = ("query", "key", "value")
FUSED = {
    BertSelfAttention: FusedSelfAttention, BertIntermediate: FusedIntermediate,
    BertSelfOutput: FusedSelfOutput, BertOutput: FusedOutput,
}  # fmt: skip
REGISTER = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")
MASK = torch.arange(24) < torch.tensor([24, 3, 17, 24])[:, None]


def swap(model: nn.Module, swapped: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    for module in model.modules():
        if (kind := swapped.get(type(module))) is not None:
            become(module, kind)
    return model


def layer_of(model: Any, number: int = 0) -> Any:
    return model.bert.encoder.layer[number]


def gradients_of(module: nn.Module, *inputs: Tensor, **options: Any) -> list[Tensor]:
    """Return a module's first output, and the gradients of its inputs and of its parameters."""
    given = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = module(*given, **options)
    output = output[0] if isinstance(output, tuple) else output
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator)
    wanted = [*given, *module.parameters()]
    return [output, *torch.autograd.grad(output, wanted, direction)]


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.detach().abs().max().clamp_min(1.0))
        torch.testing.assert_close(ours, theirs, atol=3e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("name", ["sdpa", "eager", cheap_dropout.NAME, attention.NAME, varlen.NAME])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("native")
def test_one_product_for_query_key_and_value(
    lert: Callable[..., Any], name: str, masked: bool
) -> None:
    plain = lert()
    fused = swap(copy.deepcopy(plain), FUSED)
    fused.set_attn_implementation(name)
    mask = MASK[:, None, None, :].expand(4, 1, 24, 24) if masked else None
    given = mask
    if name == "eager" and mask is not None:
        given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    hidden = torch.randn(4, 24, 48)
    found = gradients_of(layer_of(fused).attention.self, hidden, attention_mask=given)
    expected = gradients_of(layer_of(plain).attention.self, hidden, attention_mask=mask)
    assert_all_close(found, expected)


@pytest.mark.usefixtures("native")
def test_a_mask_of_several_stretches_falls_back_in_a_fused_layer_too(
    lert: Callable[..., Any],
) -> None:
    plain = lert()
    fused = swap(copy.deepcopy(plain), FUSED)
    fused.set_attn_implementation(attention.NAME)
    mask = torch.ones(4, 1, 24, 24, dtype=torch.bool)
    mask[2, 0, 5, 7] = False
    hidden = torch.randn(4, 24, 48)
    found = gradients_of(layer_of(fused).attention.self, hidden, attention_mask=mask)
    expected = gradients_of(layer_of(plain).attention.self, hidden, attention_mask=mask)
    assert_all_close(found, expected)


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("native")
def test_what_listens_to_a_projection_is_heard(
    lert: Callable[..., Any], caplog: pytest.LogCaptureFixture, part: str, register: str
) -> None:
    plain = lert()
    fused = swap(copy.deepcopy(plain), FUSED)
    fused.set_attn_implementation(attention.NAME)
    heard: list[int] = []
    inner = layer_of(fused).attention.self
    handle = getattr(inner.get_submodule(part), register)(lambda *_: heard.append(1))
    hidden = torch.randn(4, 24, 48)
    expected = gradients_of(layer_of(plain).attention.self, hidden)
    with caplog.at_level(logging.WARNING):
        assert_all_close(gradients_of(inner, hidden), expected)
        assert_all_close(gradients_of(inner, hidden), expected)
    assert heard == [1, 1]
    assert caplog.text.count("kernels: qkv: something reads the projections' outputs") == 1
    handle.remove()
    assert_all_close(gradients_of(inner, hidden), expected)
    assert heard == [1, 1]


@pytest.mark.parametrize("place", ["attention.output", "output"])
@pytest.mark.parametrize("training", [False, True])
def test_dropout_sum_and_norm(
    native: Any, keep: Any, lert: Callable[..., Any], place: str, training: bool
) -> None:
    plain = lert(dropout=0.3)
    fused = swap(copy.deepcopy(plain), FUSED).train(training)
    inner, own = layer_of(fused).get_submodule(place), layer_of(plain.eval()).get_submodule(place)
    inputs, residual = torch.randn(4, 24, inner.dense.in_features), torch.randn(4, 24, 48)
    if training:
        torch.manual_seed(6)
        kept = keep(draw_seed(), 96, 48, 0.3).view(4, 24, 48).float()
        own.dense.register_forward_hook(lambda module, given, output: output * kept)
    torch.manual_seed(6)
    assert_all_close(gradients_of(inner, inputs, residual), gradients_of(own, inputs, residual))


@pytest.mark.parametrize("place", ["attention.output", "output"])
@pytest.mark.usefixtures("native")
def test_what_listens_to_a_norm_or_a_dense_layer_is_heard(
    lert: Callable[..., Any], place: str
) -> None:
    plain = lert()
    fused = swap(copy.deepcopy(plain), FUSED)
    inner, own = layer_of(fused).get_submodule(place), layer_of(plain).get_submodule(place)
    heard: list[str] = []
    for name in ("dense", "LayerNorm"):
        inner.get_submodule(name).register_forward_hook(
            lambda *_, name=name: heard.append(name)  # type: ignore[misc]
        )
    inputs, residual = torch.randn(4, 24, inner.dense.in_features), torch.randn(4, 24, 48)
    assert_all_close(gradients_of(inner, inputs, residual), gradients_of(own, inputs, residual))
    assert heard == ["dense", "LayerNorm"]


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu"])
@pytest.mark.usefixtures("native")
def test_the_activation_is_the_models_own(lert: Callable[..., Any], name: str) -> None:
    plain = lert(hidden_act=name)
    fused = swap(copy.deepcopy(plain), FUSED)
    hidden = torch.randn(4, 24, 48)
    assert_all_close(
        gradients_of(layer_of(fused).intermediate, hidden),
        gradients_of(layer_of(plain).intermediate, hidden),
    )


def test_gelu_is_fused_and_what_listens_is_heard(
    native: Any, lert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = swap(lert(), FUSED)
    inner, hidden = layer_of(fused).intermediate, torch.randn(4, 24, 48)
    assert type(inner.intermediate_act_fn) is type(ACT2FN["gelu"])
    calls: list[int] = []
    own = modules.bias_gelu
    monkeypatch.setattr(modules, "bias_gelu", lambda *given: calls.append(1) or own(*given))
    expected = gradients_of(inner, hidden)
    assert calls == [1]
    heard: list[int] = []
    inner.dense.register_forward_hook(lambda *_: heard.append(1))
    assert_all_close(gradients_of(inner, hidden), expected)
    assert (calls, heard) == ([1], [1])


def test_without_kernels_for_the_processor_all_is_plain(
    lert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.cpu_ops, "load", lambda: None)
    plain = lert()
    fused = swap(copy.deepcopy(plain), FUSED)
    fused.set_attn_implementation(attention.NAME)
    hidden = torch.randn(4, 24, 48)
    mask = MASK[:, None, None, :].expand(4, 1, 24, 24)
    found = gradients_of(layer_of(fused), hidden, attention_mask=mask)
    assert_all_close(found, gradients_of(layer_of(plain), hidden, attention_mask=mask))


def test_a_model_in_double_precision_keeps_it(lert: Callable[..., Any]) -> None:
    plain = lert().double()
    fused = swap(copy.deepcopy(plain), FUSED)
    fused.set_attn_implementation(attention.NAME)
    hidden = torch.randn(4, 24, 48, dtype=torch.float64)
    found, expected = (layer_of(model)(hidden) for model in (fused, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_what_is_plain() -> None:
    class Other(nn.Linear):
        pass

    assert is_plain(nn.Linear(2, 2))
    assert not is_plain(nn.LayerNorm(2))
    assert not is_plain(Other(2, 2))
    assert not is_plain(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    for register in (*REGISTER, "register_full_backward_pre_hook"):
        linear = nn.Linear(2, 2)
        handle = getattr(linear, register)(lambda *_: None)
        assert not is_plain(linear), register
        handle.remove()
        assert is_plain(linear), register


def test_a_sentence_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for sentence in ("one", "other", "one"):
            tell(sentence)
    assert [record.message for record in caplog.records] == ["kernels: one", "kernels: other"]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Compile layers without a code generator → how many graphs there are so far."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(modules._forward_of_layer, backend="aot_eager", dynamic=False)
    monkeypatch.setattr(CompiledLayer, "_compiled", staticmethod(compiled))
    with torch._dynamo.config.patch(recompile_limit=40):
        yield lambda: int(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()


def compiled_of(model: Any) -> Any:
    return swap(copy.deepcopy(model), {BertLayer: CompiledLayer})


IDS = torch.randint(5, 300, (4, 24), generator=torch.Generator().manual_seed(2))


def train(model: Any, mask: Tensor | None) -> list[Tensor]:
    """Return the logits of a forward pass and all gradients."""
    model.train()
    logits = model(IDS, mask).logits
    return [logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()),
                                         allow_unused=True)]  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_layers_share_one_compilation_and_no_step_needs_another(
    lert: Callable[..., Any], graphs: Callable[[], int], checkpointing: bool
) -> None:
    model = compiled_of(lert(num_hidden_layers=4, dropout=0.1))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    train(model, MASK)
    assert graphs() == 1
    with torch.no_grad():
        model.eval()(IDS, MASK)
    assert graphs() == 2
    for _ in range(3):
        train(model, MASK)
        with torch.no_grad():
            model.eval()(IDS, MASK)
    assert graphs() == 2
    train(model, None)  # a batch without padding
    assert graphs() == 3
    assert not counters["graph_break"]


@pytest.mark.parametrize("mask", [None, MASK], ids=["none", "padded"])
def test_compiled_layers_compute_the_same(
    lert: Callable[..., Any], graphs: Callable[[], int], mask: Tensor | None
) -> None:
    plain = lert()
    pairs = zip(train(compiled_of(plain), mask), train(plain, mask), strict=True)
    assert graphs() == 1
    known = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
    assert_all_close([ours for ours, _ in known], [theirs for _, theirs in known])


def test_checkpointing_computes_compiled_layers_again_with_the_same_dropout(
    lert: Callable[..., Any], graphs: Callable[[], int]
) -> None:
    found = []
    for checkpointing in (False, True):
        model = compiled_of(lert(dropout=0.3))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(4)
        results = train(model, MASK)
        found.append([tensor for tensor in results if tensor is not None])
    assert_all_close(*found)
    assert graphs() >= 1


def test_layers_that_listen_to_their_parts_run_as_they_are(
    lert: Callable[..., Any], graphs: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    plain = lert(num_hidden_layers=4)
    model = compiled_of(plain)
    heard: list[str] = []

    def listen(to: nn.Module, name: str) -> Any:
        return to.register_forward_hook(lambda *_: heard.append(name))

    listen(layer_of(model, 2).attention.self.query, "query 2")
    listen(layer_of(model, 3).output.dense, "output 3")
    listen(layer_of(model, 1), "layer 1")  # outside of what is compiled
    with caplog.at_level(logging.WARNING):
        found = train(model, MASK)
        train(model, MASK)
    assert heard == ["layer 1", "query 2", "output 3"] * 2
    assert graphs() == 1
    assert caplog.text.count("kernels: compile: something listens to modules inside") == 1
    expected = train(plain, MASK)
    known = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    assert_all_close([a for a, _ in known], [b for _, b in known])


def test_hidden_states_and_attentions_of_compiled_layers_can_be_asked_for(
    lert: Callable[..., Any], graphs: Callable[[], int]
) -> None:
    plain = lert().eval()
    plain.set_attn_implementation("eager")
    model = compiled_of(plain)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        found, expected = model(IDS, MASK, **asked), plain(IDS, MASK, **asked)
    assert len(found.hidden_states) == 4
    assert len(found.attentions) == 3
    assert_all_close(list(found.hidden_states), list(expected.hidden_states))
    assert_all_close(list(found.attentions), list(expected.attentions))
    assert graphs() == 0  # transformers listens to the attention inside


def test_layers_of_shapes_of_their_own_are_all_compiled(
    lert: Callable[..., Any], graphs: Callable[[], int]
) -> None:
    # Ten shapes: dynamo's own limit is eight, and the last two would run uncompiled, unsaid.
    sizes = [8 * (number + 1) for number in range(10)]
    plain = lert(num_hidden_layers=10, layer_intermediate_sizes=sizes)
    model = compiled_of(plain)
    for _ in range(2):
        results = zip(train(model, MASK), train(plain, MASK), strict=True)
        known = [(a, b) for a, b in results if b is not None]
        assert_all_close([a for a, _ in known], [b for _, b in known])
        assert graphs() == 10


def test_a_replayed_layer_is_compiled_apart() -> None:
    assert issubclass(ReplayedLayer, CompiledLayer)
    assert issubclass(CompiledLayer, BertLayer)
    assert ReplayedLayer._compiled is not CompiledLayer._compiled
