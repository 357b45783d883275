"""The refit against what defines it: the least squares of what the original's layers give."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.model_surgery import Cut, cut
from lert_ds.modeling_lert import LertForPreTraining, LertForSequenceClassification
from lert_ds.objective import Batch
from prune.repair import NormalEquations, repair

HEADS = ((True, False, True, True), (False, True, False, False), (True,) * 4)
NEURONS = (torch.arange(24) % 3 > 0, torch.arange(24) < 9, torch.arange(24) % 2 == 0)
NONE_LEFT = Cut(
    heads=((False,) * 4, (True,) * 4, (True, False, True, True)),
    neurons=(torch.ones(24, dtype=torch.bool), torch.arange(24) < 0, torch.arange(24) > 3),
)
PIECES = torch.tensor([i for i in range(40) if i not in (11, 17, 30)])
SHAPES = {
    "heads": Cut(heads=HEADS),
    "neurons": Cut(neurons=NEURONS),
    "none left": NONE_LEFT,
    "a layer": Cut(layers=(0, 2)),
    "the first layer": Cut(layers=(1, 2)),
    "the last layer": Cut(HEADS, layers=(0, 1)),
    "everything": Cut(HEADS, NEURONS, (0, 2), PIECES),
}


def make_model(cls: type[Any] = LertForPreTraining, **changes: Any) -> Any:
    """A tiny model whose every parameter is random, biases and LayerNorms too."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
    }
    torch.manual_seed(0)
    model = cls(LertConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_batches(seed: int = 0, sizes: Sequence[int] = (5, 7), padded: bool = True) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        ids = torch.randint(5, 40, (size, 12), generator=generator)
        real = torch.arange(12) < torch.randint(3, 13, (size, 1), generator=generator)
        nothing = torch.zeros(0, dtype=torch.int64)
        ids = ids.where(real, 0) if padded else ids
        batches.append(Batch(ids, real if padded else None, nothing, nothing, {}))
    return batches


def repaired(model: Any, shape: Cut, batches: Sequence[Batch], ridge: float = 0.0) -> Any:
    pruned = cut(model, shape)
    unknown_id = None if shape.pieces is None else 1
    repair(model, pruned, shape, batches, ridge, unknown_id=unknown_id)
    return pruned


def output_maps(model: Any) -> list[Any]:
    layers = model.base_model.encoder.layer
    return [dense for x in layers for dense in (x.attention.output.dense, x.output.dense)]


def watch(model: Any, batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    """For each half of each layer: what its linear map reads, and the sum before the norm."""
    seen: dict[Any, list[Tensor]] = {}

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.setdefault(module, []).append(inputs[0])

    outputs = [
        output
        for layer in model.base_model.encoder.layer
        for output in (layer.attention.output, layer.output)
    ]
    hooks = [
        module.register_forward_pre_hook(note)
        for output in outputs
        for module in (output.dense, output.LayerNorm)
    ]
    with torch.no_grad():
        for batch in batches:
            model.base_model(batch.input_ids, attention_mask=batch.attention_mask)
    for hook in hooks:
        hook.remove()
    real = [
        torch.ones_like(batch.input_ids, dtype=torch.bool)
        if batch.attention_mask is None
        else batch.attention_mask
        for batch in batches
    ]

    def joined(module: Any) -> Tensor:
        parts = zip(seen[module], real, strict=True)
        return torch.cat([states[places] for states, places in parts]).double()

    return [(joined(output.dense), joined(output.LayerNorm)) for output in outputs]


def renumbered(batches: Sequence[Batch], pieces: Tensor | None) -> tuple[list[Batch], list[Batch]]:
    """The text as the original and as the cut model read it."""
    if pieces is None:
        return list(batches), list(batches)
    theirs = [b._replace(input_ids=b.input_ids.where(torch.isin(b.input_ids, pieces), 1))
              for b in batches]  # fmt: skip
    ours = [b._replace(input_ids=torch.searchsorted(pieces, b.input_ids)) for b in theirs]
    return theirs, ours


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("name", SHAPES)
def test_every_map_is_the_best_for_what_it_reads(name: str, ridge: float, padded: bool) -> None:
    """At the minimum the gradient is 0; it is so in all layers at once only if fitted in order."""
    shape, model, batches = SHAPES[name], make_model(), make_batches(sizes=(9, 20), padded=padded)
    pruned = cut(model, shape)
    unfitted = copy.deepcopy(pruned)
    repair(model, pruned, shape, batches, ridge, unknown_id=1)
    theirs, ours = renumbered(batches, shape.pieces)
    wanted = watch(model, theirs)
    found = watch(pruned, ours)
    layers = range(3) if shape.layers is None else shape.layers
    aims = [wanted[2 * number + half] for number in layers for half in (0, 1)]
    maps = zip(output_maps(pruned), output_maps(unfitted), strict=True)
    for (features, total), (_, aim), (dense, before) in zip(found, aims, maps, strict=True):
        missing = aim - total
        torch.testing.assert_close(missing.mean(0), torch.zeros(16).double(), atol=1e-5, rtol=0)
        if not features.shape[1]:
            continue
        centred = features - features.mean(0)
        penalty = ridge * centred.square().sum(0).mean()
        gradient = centred.T @ missing - penalty * (dense.weight - before.weight).double().T
        scale = centred.norm() * aim.norm()
        assert float(gradient.detach().norm() / scale) < 1e-6


@pytest.mark.parametrize("cls", [LertForPreTraining, LertForSequenceClassification])
def test_where_nothing_is_cut_nothing_changes(cls: type[Any]) -> None:
    model = make_model(cls)
    pruned = repaired(model, Cut(), make_batches())
    for name, weight in pruned.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    # A layer before the first that is cut is left alone too, and what is no output map.
    pruned = repaired(model, Cut(neurons=(torch.ones(24).bool(), *NEURONS[1:])), make_batches())
    before = cut(model, Cut(neurons=(torch.ones(24).bool(), *NEURONS[1:]))).state_dict()
    changed = {
        name
        for name, weight in pruned.state_dict().items()
        if not torch.equal(weight, before[name])
    }
    prefix = "bert.encoder.layer."
    assert changed == {
        f"{prefix}{place}.{kind}"
        for place in ("1.output.dense", "2.attention.output.dense", "2.output.dense")
        for kind in ("weight", "bias")
    }


@torch.no_grad()
def test_what_the_rest_can_say_is_said_by_the_rest() -> None:
    """A twin, a sum of two and a constant: cut, and the original comes back, on any text."""
    model = make_model()
    first, second = model.bert.encoder.layer[0], model.bert.encoder.layer[1]
    for name in ("query", "key", "value"):
        for parameter in first.attention.self.get_submodule(name).parameters():
            parameter[4:8] = parameter[12:16]
    for parameter in first.intermediate.dense.parameters():
        parameter[5] = parameter[20]
    second.intermediate.dense.weight[7] = 0
    second.intermediate.dense.bias[7] = 1.5
    every = torch.ones(24, dtype=torch.bool)
    shape = Cut(
        heads=((True, False, True, True), (True,) * 4, (True,) * 4),
        neurons=(torch.arange(24) != 5, torch.arange(24) != 7, every),
    )
    other = make_batches(seed=4)[0]
    wanted = model(other.input_ids, attention_mask=other.attention_mask).logits
    plain = cut(model, shape)(other.input_ids, attention_mask=other.attention_mask).logits
    pruned = repaired(model, shape, make_batches(sizes=(40,)))
    found = pruned(other.input_ids, attention_mask=other.attention_mask).logits
    assert float((plain - wanted)[other.attention_mask].abs().max()) > 0.1
    torch.testing.assert_close(
        found[other.attention_mask], wanted[other.attention_mask], atol=1e-4, rtol=1e-4
    )


def test_text_may_come_in_any_parts_and_once() -> None:
    model, whole = make_model(), make_batches(sizes=(12,))[0]
    assert whole.attention_mask is not None
    parts = [
        whole._replace(input_ids=whole.input_ids[rows], attention_mask=whole.attention_mask[rows])
        for rows in (slice(0, 1), slice(1, 9), slice(9, 12))
    ]
    shape = SHAPES["everything"]
    at_once, in_parts = cut(model, shape), cut(model, shape)
    repair(model, at_once, shape, [whole], unknown_id=1)
    repair(model, in_parts, shape, iter(parts), unknown_id=1)
    for name, weight in at_once.state_dict().items():
        torch.testing.assert_close(
            in_parts.state_dict()[name], weight, atol=1e-4, rtol=1e-4, msg=name
        )


def test_what_stands_in_the_padding_is_not_read() -> None:
    model, batches = make_model(), make_batches(sizes=(15,))
    others = [b._replace(input_ids=b.input_ids.where(b.attention_mask, 39)) for b in batches]
    one = repaired(model, SHAPES["heads"], batches)
    other = repaired(model, SHAPES["heads"], others)
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, atol=1e-4, rtol=1e-4)


def test_a_piece_that_is_gone_is_unknown_to_both() -> None:
    model, shape = make_model(), Cut(pieces=PIECES)
    assert any(bool((~torch.isin(batch.input_ids, PIECES)).any()) for batch in make_batches())
    pruned, before = repaired(model, shape, make_batches()), cut(model, shape).state_dict()
    for name, weight in pruned.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_dropout_is_out_and_the_original_stays() -> None:
    model, shape = make_model(), SHAPES["heads"]
    wanted = repaired(model, shape, make_batches()).state_dict()
    before = copy.deepcopy(model.state_dict())
    pruned = cut(model.train(), shape).eval()
    repair(model, pruned, shape, make_batches(), 0.0)
    assert model.training
    assert not pruned.training
    for name, weight in pruned.state_dict().items():
        assert torch.equal(weight, wanted[name]), name
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_the_type_and_either_attention(attention: str) -> None:
    model, batches = make_model(attn_implementation=attention), make_batches(sizes=(30,))
    wanted = repaired(model, SHAPES["neurons"], batches, 1e-2)
    model.bfloat16()
    found = repaired(model, SHAPES["neurons"], batches, 1e-2)
    plain = cut(model, SHAPES["neurons"])
    assert all(weight.dtype is torch.bfloat16 for weight in found.state_dict().values())
    name = "bert.encoder.layer.0.output.dense.weight"
    exact, rough, before = (m.state_dict()[name].float() for m in (wanted, found, plain))
    assert float((rough - exact).norm()) < 0.2 * float((before - exact).norm())


@pytest.mark.parametrize("batches", [[], make_batches(sizes=(0,))])
def test_without_text_nothing_is_refitted(batches: list[Batch]) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match="no text to refit the layers with"):
        repair(model, cut(model, SHAPES["heads"]), SHAPES["heads"], batches)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_normal_equations_are_least_squares(ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator).double() + 3
    targets = torch.randn(50, 4, generator=generator).double()
    equations = NormalEquations(6, 4, torch.device("cpu"))
    for rows in (slice(0, 7), slice(7, 50)):
        equations.add(features[rows], targets[rows])
    weight, bias = equations.solve(ridge)
    penalty = ridge * 50 * features.var(0, correction=0).mean()
    # The penalty as six places more, where one feature stands alone and nothing is wanted.
    rows = torch.cat([torch.eye(6).double() * penalty.sqrt(), torch.zeros(6, 1).double()], dim=1)
    design = torch.cat([torch.cat([features, torch.ones(50, 1).double()], dim=1), rows])
    wanted = torch.linalg.lstsq(design, torch.cat([targets, torch.zeros(6, 4).double()])).solution
    torch.testing.assert_close(weight, wanted[:6].T)
    torch.testing.assert_close(bias, wanted[6])


@pytest.mark.parametrize("constant", [0.0, 0.1, 7.3])
def test_features_that_say_nothing_get_no_weight(constant: float) -> None:
    targets = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    equations = NormalEquations(3, 4, torch.device("cpu"))
    equations.add(torch.full((200, 3), constant), targets)
    weight, bias = equations.solve(1e-2)
    assert float(weight.abs().max()) < 1e-3
    torch.testing.assert_close(bias, targets.double().mean(0), atol=1e-2, rtol=0)


def test_without_features_the_bias_is_the_mean() -> None:
    equations = NormalEquations(0, 2, torch.device("cpu"))
    equations.add(torch.zeros(3, 0), torch.tensor([[1.0, 0.0], [2.0, 6.0], [6.0, 0.0]]))
    weight, bias = equations.solve(1e-2)
    assert weight.shape == (2, 0)
    assert bias.tolist() == [3.0, 2.0]
