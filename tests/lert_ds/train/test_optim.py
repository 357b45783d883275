"""Lamb and Lion against ten lines of NumPy, and which parameters decay."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lert_ds.train.optim import (
    Lamb,
    Lion,
    OptimizerConfig,
    ParameterOptions,
    parameter_groups,
)

Array = np.ndarray
RATE, BETA1, BETA2, EPSILON, DECAY = 0.02, 0.9, 0.99, 1e-6, 0.1


def lamb(p: Array, gradients: list[Array], decay: float, correct: bool) -> Array:
    """Algorithm 2 of arXiv 1904.00962, in float64."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        m_hat = m / (1 - BETA1**t) if correct else m
        v_hat = v / (1 - BETA2**t) if correct else v
        r = m_hat / (np.sqrt(v_hat) + EPSILON) + decay * p
        sizes = np.linalg.norm(p), np.linalg.norm(r)
        p = p - RATE * (sizes[0] / sizes[1] if min(sizes) > 0 else 1.0) * r
    return p


def lion(p: Array, gradients: list[Array], decay: float) -> Array:
    """Program 1 of arXiv 2302.06675, in float64."""
    m = np.zeros_like(p)
    for g in gradients:
        update = np.sign(BETA1 * m + (1 - BETA1) * g)
        m = BETA2 * m + (1 - BETA2) * g
        p = p - RATE * (update + decay * p)
    return p


def train(
    make: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
    start: list[Array],
    gradients: list[list[Array]],
) -> list[Array]:
    """Return a decayed matrix and a vector that does not decay after steps on given gradients."""
    parameters = [nn.Parameter(torch.from_numpy(array.copy())) for array in start]
    optimizer = make(
        [
            {"params": [parameters[0]], "weight_decay": DECAY},
            {"params": [parameters[1]], "weight_decay": 0.0},
        ]
    )
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


@pytest.fixture
def start() -> list[Array]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=(4, 3)), generator.normal(size=5)]


@pytest.fixture
def gradients() -> list[list[Array]]:
    generator = np.random.default_rng(1)
    return [[generator.normal(size=(4, 3)), generator.normal(size=5)] for _ in range(6)]


@pytest.mark.parametrize("correct", [False, True])
def test_lamb_is_the_published_algorithm(
    start: list[Array], gradients: list[list[Array]], correct: bool
) -> None:
    got = train(
        lambda groups: Lamb(
            groups, lr=RATE, betas=(BETA1, BETA2), eps=EPSILON, bias_correction=correct
        ),
        start,
        gradients,
    )
    for which, decay in ((0, DECAY), (1, 0.0)):
        expected = lamb(start[which], [step[which] for step in gradients], decay, correct)
        np.testing.assert_allclose(got[which], expected, rtol=1e-9)


def test_the_bias_correction_of_lamb_makes_a_difference(
    start: list[Array], gradients: list[list[Array]]
) -> None:
    with_it, without = (
        lamb(start[0], [step[0] for step in gradients], DECAY, correct) for correct in (True, False)
    )
    assert np.abs(with_it - without).max() > 1e-3


def test_lamb_moves_a_parameter_of_zeros(gradients: list[list[Array]]) -> None:
    zeros = [np.zeros((4, 3)), np.zeros(5)]
    got = train(
        lambda groups: Lamb(
            groups, lr=RATE, betas=(BETA1, BETA2), eps=EPSILON, bias_correction=False
        ),
        zeros,
        gradients,
    )
    expected = lamb(zeros[1], [step[1] for step in gradients], 0.0, correct=False)
    np.testing.assert_allclose(got[1], expected, rtol=1e-9)
    assert np.abs(got[1]).min() > 0


def test_lamb_leaves_a_parameter_alone_whose_gradients_are_all_zero(start: list[Array]) -> None:
    zero_gradients = [[np.zeros_like(array) for array in start]] * 3
    got = train(
        lambda groups: Lamb(
            groups, lr=RATE, betas=(BETA1, BETA2), eps=EPSILON, bias_correction=False
        ),
        start,
        zero_gradients,
    )
    np.testing.assert_array_equal(got[1], start[1])  # no decay: the update is 0 / 0 otherwise
    assert np.linalg.norm(got[0]) < np.linalg.norm(start[0])  # decay alone


def test_lion_is_the_published_program(start: list[Array], gradients: list[list[Array]]) -> None:
    got = train(lambda groups: Lion(groups, lr=RATE, betas=(BETA1, BETA2)), start, gradients)
    for which, decay in ((0, DECAY), (1, 0.0)):
        expected = lion(start[which], [step[which] for step in gradients], decay)
        np.testing.assert_allclose(got[which], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", [Lamb, Lion])
def test_saved_and_loaded_state_goes_on_as_if_nothing_had_been(
    kind: type[Lamb] | type[Lion], start: list[Array], gradients: list[list[Array]]
) -> None:
    more = {"eps": EPSILON, "bias_correction": True} if kind is Lamb else {}
    parameter = nn.Parameter(torch.from_numpy(start[0].copy()))

    def make() -> torch.optim.Optimizer:
        group = {"params": [parameter], "weight_decay": DECAY}
        return kind([group], lr=RATE, betas=(BETA1, BETA2), **more)  # type: ignore[arg-type]

    optimizer = make()
    for number, step in enumerate(gradients):
        if number == 3:
            saved = optimizer.state_dict()
            optimizer = make()
            optimizer.load_state_dict(saved)
        parameter.grad = torch.from_numpy(step[0].copy())
        optimizer.step()
    column = [step[0] for step in gradients]
    if kind is Lamb:
        expected = lamb(start[0], column, DECAY, correct=True)
    else:
        expected = lion(start[0], column, DECAY)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", [Lamb, Lion])
def test_a_parameter_without_a_gradient_stays(kind: type[Lamb] | type[Lion]) -> None:
    more = {"eps": EPSILON, "bias_correction": True} if kind is Lamb else {}
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = kind(
        [{"params": [parameter], "weight_decay": DECAY}],
        lr=RATE, betas=(BETA1, BETA2), **more,  # type: ignore[arg-type]
    )  # fmt: skip
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2, 2))


class Tied(nn.Module):
    """Embeddings, a LayerNorm, a decoder that shares its weight, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(7, 4)
        self.LayerNorm = nn.LayerNorm(4)
        self.decoder = nn.Linear(4, 7)
        self.decoder.weight = self.embeddings.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Tied()
    (decayed, others), _ = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model.embeddings.weight)]  # tied: once
    assert {id(p) for p in others["params"]} == {
        id(p) for p in (model.LayerNorm.weight, model.LayerNorm.bias, model.decoder.bias)
    }


def test_the_groups_are_those_that_lert_makes_by_name() -> None:
    from lert_ds.configuration_lert import LertConfig
    from lert_ds.labels import LTP_TAGS
    from lert_ds.modeling_lert import LertForPreTraining

    model = LertForPreTraining(
        LertConfig(
            vocab_size=50,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
        )
    )
    (decayed, others), _ = parameter_groups(model, 0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name = {name for name in names.values() if "LayerNorm" in name or "bias" in name}
    assert {names[id(parameter)] for parameter in others["params"]} == by_name
    assert {names[id(p)] for p in decayed["params"]} == set(names.values()) - by_name


def test_a_parameter_that_zero_3_has_taken_apart_keeps_its_group() -> None:
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    (decayed, others), _ = parameter_groups(model, 0.01)
    assert decayed["params"] == [model.weight]
    assert others["params"] == [model.bias]


def test_an_empty_group_is_left_out() -> None:
    assert len(parameter_groups(nn.Linear(3, 2, bias=False), 0.01)[0]) == 1


def test_the_defaults_are_lerts() -> None:
    config = OptimizerConfig()
    assert (config.name, config.bias_correction, config.weight_decay) == ("adamw", False, 0.01)
    assert (config.beta1, config.beta2, config.epsilon) == (0.9, 0.999, 1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta1", 1.0), ("beta2", -0.1), ("epsilon", 0.0), ("weight_decay", -0.01)],
)
def test_numbers_out_of_range_are_refused_by_their_key(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{key} = {value}: must be"):
        OptimizerConfig(**{key: value})  # type: ignore[arg-type]


def test_a_submodule_may_have_its_own_rate_and_decay() -> None:
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "extra": nn.Linear(3, 3)})
    options = {"extra": ParameterOptions(rate_ratio=5.0, weight_decay=0.5)}
    groups, ratios = parameter_groups(model, 0.01, options)
    found = [(g["weight_decay"], r, len(g["params"])) for g, r in zip(groups, ratios, strict=True)]
    assert found == [(0.01, 1.0, 1), (0.0, 1.0, 1), (0.5, 5.0, 1), (0.0, 5.0, 1)]
    assert groups[2]["params"][0] is model["extra"].weight
