"""Taps against what transformers gives out itself, and against TextBrewer's losses."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from textbrewer.losses import att_ce_loss, att_ce_mean_loss
from torch import Tensor

from distill.features import Feature, Taps, tap_feature
from lert_ds.configuration_lert import LertConfig
from lert_ds.kernels import modules
from lert_ds.kernels.apply import choose, use_kernels
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.modeling_lert import LertForMaskedLM, LertForPreTraining

LAYERS, WIDTH, HEADS = 3, 32, 4
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7])
MASKS = pytest.mark.parametrize("mask", [None, MASK, MASK.bool()], ids=["none", "int", "bool"])
PRUNED = {"layer_attention_heads": [4, 2, 3], "layer_intermediate_sizes": [64, 0, 17]}
HIDDEN = range(LAYERS + 1)
ATTENTION = range(LAYERS)
_PLAIN: dict[str, Any] = dict.fromkeys(("qkv", "activation", "residual", "dropout"), "plain")
KERNELS = {
    "plain": KernelsConfig(attention="plain", **_PLAIN),
    "lots": KernelsConfig(attention="lots", **(_PLAIN | {"dropout": "lots"})),
    "fused": KernelsConfig(),
}
ALL = {
    "hidden": HIDDEN,
    "attention": ATTENTION,
    "attention_scores": ATTENTION,
    "attention_mean_scores": ATTENTION,
    "qkv": ATTENTION,
}


def make_model(
    attention: str = "sdpa", dropout: float = 0.0, seed: int = 0, **changes: Any
) -> LertForPreTraining:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 60,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 64,
        "max_position_embeddings": 20,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "tag_sets": {"pos": ["n", "v", "a"]},
    }
    config = LertConfig(**{**sizes, **changes})
    model: LertForPreTraining = LertForPreTraining._from_config(
        config, attn_implementation=attention
    )
    with torch.no_grad():  # far from the start, where all attention is even
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_ids(seed: int = 1) -> Tensor:
    return torch.randint(5, 60, MASK.shape, generator=torch.Generator().manual_seed(seed))


def tensors_of(features: Mapping[str, Mapping[int, Feature]]) -> dict[tuple[str, int, int], Tensor]:
    flat = {}
    for feature, layers in features.items():
        for layer, tapped in layers.items():
            for number, tensor in enumerate(tapped if isinstance(tapped, tuple) else (tapped,)):
                flat[feature, layer, number] = tensor
    return flat


def one(features: Mapping[str, Mapping[int, Feature]], feature: str, layer: int) -> Tensor:
    tapped = features[feature][layer]
    assert isinstance(tapped, Tensor)
    return tapped


@MASKS
@pytest.mark.parametrize("shape", [{}, PRUNED], ids=["full", "pruned"])
def test_taps_are_what_transformers_gives_out(mask: Tensor | None, shape: dict[str, Any]) -> None:
    model = make_model(**shape)
    taps = Taps(model, {"hidden": HIDDEN, "attention": ATTENTION})
    model(make_ids(), attention_mask=mask)
    features = taps.take(mask)
    eager = make_model("eager", **shape)
    expected = eager(
        make_ids(), attention_mask=mask, output_hidden_states=True, output_attentions=True
    )
    for number in HIDDEN:
        torch.testing.assert_close(one(features, "hidden", number), expected.hidden_states[number])
    for number in ATTENTION:
        attention = one(features, "attention", number)
        assert attention.shape[1] == model.config.heads_of(number)
        torch.testing.assert_close(attention, expected.attentions[number])
        if mask is not None:
            assert not attention.masked_select(~mask.bool()[:, None, None, :]).any()


def test_hidden_states_are_the_very_tensors_of_the_forward() -> None:
    model = make_model(dropout=0.5).train()
    taps = Taps(model, {"hidden": [0, 2, 3]})
    states = model(make_ids(), output_hidden_states=True).hidden_states
    features = taps.take(None)
    assert set(features["hidden"]) == {0, 2, 3}
    assert all(tapped is states[layer] for layer, tapped in features["hidden"].items())


def test_bfloat16_attention_is_about_that_of_float32() -> None:
    reference = make_model("eager")(make_ids(), attention_mask=MASK, output_attentions=True)
    model = make_model().bfloat16()
    taps = Taps(model, ALL, relation_heads=2)
    model(make_ids(), attention_mask=MASK)
    features = taps.take(MASK)
    for number in ATTENTION:
        attention = one(features, "attention", number)
        assert attention.dtype == torch.float32
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        torch.testing.assert_close(attention, reference.attentions[number], rtol=0, atol=0.05)
    dtypes = {feature: tensor.dtype for (feature, _, _), tensor in tensors_of(features).items()}
    assert dtypes["hidden"] == dtypes["qkv"] == torch.bfloat16
    assert dtypes["attention_scores"] == dtypes["attention_mean_scores"] == torch.float32


def test_attention_under_autocast_is_computed_in_float32() -> None:
    model = make_model()
    taps = Taps(model, {"attention": ATTENTION, "attention_mean_scores": ATTENTION})
    model(make_ids(), attention_mask=MASK)
    expected = tensors_of(taps.take(MASK))
    model(make_ids(), attention_mask=MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = tensors_of(taps.take(MASK))
    assert all(torch.equal(features[key], expected[key]) for key in expected)


@pytest.mark.parametrize("relation_heads", [1, 2, 8])
def test_queries_keys_and_values_are_regrouped_in_the_order_of_their_units(
    relation_heads: int,
) -> None:
    model = make_model(layer_attention_heads=[4, 2, 3])
    layer = 1
    taps = Taps(model, {"qkv": [layer]}, relation_heads)
    states = model(make_ids(), output_hidden_states=True).hidden_states
    qkv = taps.take(None)["qkv"][layer]
    width = 2 * WIDTH // HEADS
    attention = model.bert.encoder.layer[layer].attention.self
    projections = (attention.query, attention.key, attention.value)
    for tapped, projection in zip(qkv, projections, strict=True):
        assert tapped.shape == (3, relation_heads, 9, width // relation_heads)
        joined = torch.cat(list(tapped.unbind(1)), dim=-1)
        torch.testing.assert_close(joined, projection(states[layer]))


@pytest.mark.parametrize("mask", [None, MASK], ids=["none", "padded"])
def test_scores_give_textbrewer_the_cross_entropy_of_the_probabilities(mask: Tensor | None) -> None:
    wanted = {name: [1] for name in ("attention", "attention_scores", "attention_mean_scores")}
    both = []
    for seed in (0, 1):
        model = make_model(seed=seed)
        taps = Taps(model, wanted)
        model(make_ids(), attention_mask=mask)
        both.append(taps.take(mask))
    student, teacher = both
    p, q = (one(features, "attention", 1).double() for features in both)
    real = (torch.ones_like(MASK) if mask is None else mask).bool()

    def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
        return -torch.xlogy(q, p.where(p > 0, 1)).sum(-1)

    expected = cross_entropy(p, q).transpose(0, 1)[:, real].mean()
    loss = att_ce_loss(
        one(student, "attention_scores", 1), one(teacher, "attention_scores", 1), mask=real
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)

    expected = cross_entropy(p.mean(1), q.mean(1))[real].mean()
    loss = att_ce_mean_loss(
        one(student, "attention_mean_scores", 1),
        one(teacher, "attention_mean_scores", 1),
        mask=real,
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert loss > 0


def test_mean_scores_outlast_probabilities_that_underflow() -> None:
    model = make_model()
    with torch.no_grad():  # differences of some 1000, whose exponentials are 0 in float32
        model.bert.encoder.layer[0].attention.self.query.weight.mul_(100)
    taps = Taps(model, {"attention": [0], "attention_mean_scores": [0]})
    model(make_ids())
    features = taps.take(None)
    mean = one(features, "attention", 0).mean(1)
    logs = one(features, "attention_mean_scores", 0)
    assert (mean == 0).any()
    assert logs.isfinite().all()
    torch.testing.assert_close(logs.exp(), mean)
    (gradient,) = torch.autograd.grad(
        logs.sum(), model.bert.encoder.layer[0].attention.self.key.weight
    )
    assert gradient.isfinite().all()


def test_dropout_does_not_touch_attention() -> None:
    model = make_model(dropout=0.5).train()
    taps = Taps(model, {"attention": [0]})
    model.bert.embeddings.dropout.p = 0.0  # the first layer then sees the same in both modes
    model(make_ids(), attention_mask=MASK)
    trained = one(taps.take(MASK), "attention", 0)
    torch.testing.assert_close(trained.sum(-1), torch.ones(3, HEADS, 9))
    model.eval()
    model(make_ids(), attention_mask=MASK)
    assert torch.equal(trained, one(taps.take(MASK), "attention", 0))


def step(model: LertForPreTraining, taps: Taps) -> dict[str, Tensor]:
    """Differentiate a loss of everything tapped and of the logits; return the gradients."""
    torch.manual_seed(9)
    model.zero_grad()
    logits = model(make_ids(), attention_mask=MASK).logits
    features = tensors_of(taps.take(MASK))
    loss = logits.square().mean()
    for key, tensor in features.items():
        weights = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(sum(key[1:])))
        loss = loss + (weights * tensor.clamp(min=-100)).sum()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("feature", ALL)
def test_gradients_are_the_same_with_gradient_checkpointing(
    feature: str, dropout: float, kernels: str
) -> None:
    model = make_model(dropout=dropout, **PRUNED).train()
    use_kernels(model, choose(KERNELS[kernels], torch.device("cpu")))
    taps = Taps(model, {feature: ALL[feature]}, relation_heads=2)
    plain = step(model, taps)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    query = model.bert.encoder.layer[1].attention.self.query
    query.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = step(model, taps)
    assert len(calls) == 2  # it was computed again
    assert plain.keys() == checkpointed.keys()
    # The hook makes three products of one: 3e-5 apart where oneDNN multiplies.
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=5e-5)
    # The second step finds nothing of what the first one computed again.
    for name, gradient in step(model, taps).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=5e-5)


def test_a_feature_alone_reaches_the_weights_behind_it() -> None:
    model = make_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    taps = Taps(model, ALL, relation_heads=2)
    attention = model.bert.encoder.layer[1].attention.self
    for feature, weight in {
        "hidden": model.bert.encoder.layer[1].output.dense.weight,
        "attention": attention.key.weight,
        "attention_scores": attention.query.weight,
        "attention_mean_scores": attention.query.weight,
        "qkv": attention.value.weight,
    }.items():
        model(make_ids(), attention_mask=MASK)
        tapped = taps.take(MASK)[feature][2 if feature == "hidden" else 1]
        last = tapped[-1] if isinstance(tapped, tuple) else tapped
        (gradient,) = torch.autograd.grad(last.square().sum(), weight)
        assert gradient.abs().max() > 1e-3, feature


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_left_from_one_forward_to_the_next(checkpointing: bool) -> None:
    model = make_model().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    taps = Taps(model, ALL, relation_heads=2)
    model(make_ids(), attention_mask=MASK)
    first = tensors_of(taps.take(MASK))
    with pytest.raises(AssertionError, match="take"):
        taps.take(MASK)
    # One that nobody took does not stand in the way of the next, nor mix with it.
    model(make_ids(seed=2), attention_mask=MASK)
    model(make_ids(), attention_mask=MASK)
    second = tensors_of(taps.take(MASK))
    assert first.keys() == second.keys()
    assert all(torch.equal(second[key], first[key]) for key in first)


def test_what_a_backward_pass_computes_again_is_not_taken() -> None:
    model = make_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    computed: list[Tensor] = []
    query = model.bert.encoder.layer[1].attention.self.query
    query.register_forward_hook(lambda module, args, output: computed.append(output))
    taps = Taps(model, {"qkv": ATTENTION}, relation_heads=2)
    model(make_ids()).logits.sum().backward()
    tapped = taps.take(None)["qkv"][1][0]
    assert len(computed) == 2  # it was computed again, before the take
    assert tapped.data_ptr() == computed[0].data_ptr() != computed[1].data_ptr()
    model(make_ids())
    sum(tensor.sum() for tensor in tensors_of(taps.take(None)).values()).backward()  # type: ignore[union-attr]
    assert len(computed) == 4  # and after it
    with pytest.raises(AssertionError, match="take"):
        taps.take(None)


def test_a_forward_that_fails_mixes_with_no_other() -> None:
    model = make_model()
    taps = Taps(model, {"hidden": [0, 3]})
    model(make_ids())
    fail = model.bert.encoder.layer[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(make_ids(seed=2))
    fail.remove()
    with pytest.raises(AssertionError, match="take"):
        taps.take(None)
    expected = model(make_ids(), output_hidden_states=True).hidden_states
    assert torch.equal(one(taps.take(None), "hidden", 0), expected[0])


def test_tensors_are_kept_no_longer_than_asked() -> None:
    model = make_model()
    taps = Taps(model, {"hidden": [1]})
    model(make_ids())
    taps.clear()
    with pytest.raises(AssertionError, match="take"):
        taps.take(None)


def test_closed_taps_leave_the_model_as_it_was() -> None:
    model = make_model()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    taps = Taps(model, ALL, relation_heads=2)
    assert [len(module._forward_hooks) for module in model.modules()] != hooks
    taps.close()
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_taps_change_nothing_and_need_no_eager_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    expected = model(make_ids(), attention_mask=MASK).logits
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    taps = Taps(model, ALL, relation_heads=2)
    assert torch.equal(model(make_ids(), attention_mask=MASK).logits, expected)
    assert len(calls) == LAYERS
    taps.take(MASK)
    assert len(calls) == LAYERS


def test_layers_without_heads_have_hidden_states() -> None:
    model = make_model(layer_attention_heads=[4, 0, 4])
    taps = Taps(model, {"hidden": [2], "attention": [0, 2]})
    expected = model(make_ids(), output_hidden_states=True).hidden_states
    assert torch.equal(one(taps.take(None), "hidden", 2), expected[2])
    with pytest.raises(AttributeError):
        Taps(model, {"attention": [1]})


@pytest.mark.parametrize(
    ("wanted", "relation_heads"),
    [
        ({"hidden": [LAYERS + 1]}, None),
        ({"hidden": [-1]}, None),
        ({"attention": [LAYERS]}, None),
        ({"qkv": [0]}, None),
        ({"qkv": [0]}, 3),
    ],
)
def test_what_cannot_be_tapped_is_refused(
    wanted: dict[str, list[int]], relation_heads: int | None
) -> None:
    with pytest.raises((AssertionError, AttributeError)):
        Taps(make_model(), wanted, relation_heads)


def test_any_class_with_an_encoder_can_be_tapped() -> None:
    config = make_model().config
    model = LertForMaskedLM(config).eval()
    taps = Taps(model, {"hidden": [1]})
    expected = model(make_ids(), output_hidden_states=True).hidden_states
    assert torch.equal(one(taps.take(None), "hidden", 1), expected[1])


def test_no_wish_is_no_feature() -> None:
    model = make_model()
    taps = Taps(model, {})
    model(make_ids())
    assert taps.take(None) == {}


def test_losses_that_take_a_softmax_read_scores() -> None:
    assert tap_feature("attention", "attention_ce") == "attention_scores"
    assert tap_feature("attention", "attention_ce_mean") == "attention_mean_scores"
    assert tap_feature("attention", "attention_mse") == "attention"
    assert tap_feature("hidden", "hidden_mse") == "hidden"
    assert tap_feature("qkv", "minilm_relation") == "qkv"


@pytest.mark.parametrize("asked", [{}, {"compile": "layers"}], ids=["fused", "compiled"])
def test_taps_take_the_same_whatever_computes_a_layer(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused projections and compiled layers would pass hooks by, did they not look for them."""
    compiled = torch.compile(modules._forward_of_layer, backend="aot_eager", dynamic=False)
    monkeypatch.setattr(modules.CompiledLayer, "_compiled", staticmethod(compiled))
    found = []
    for kernels in (KERNELS["plain"], KernelsConfig(**asked)):
        model = make_model(**PRUNED)
        use_kernels(model, choose(kernels, torch.device("cpu")))
        # The first layer has no hook inside, and is the one that is compiled.
        taps = Taps(model, {"hidden": HIDDEN, "attention": [1, 2], "qkv": [2]}, relation_heads=2)
        model(make_ids(), attention_mask=MASK)
        found.append(tensors_of(taps.take(MASK)))
    assert found[0].keys() == found[1].keys()
    for source, tensor in found[0].items():
        torch.testing.assert_close(found[1][source], tensor, rtol=1e-4, atol=1e-5)
