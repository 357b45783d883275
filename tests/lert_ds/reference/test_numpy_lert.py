"""The reference itself: its gradients against finite differences, its optimizer by hand."""

import math
from typing import Any

import numpy as np
import pytest

STEP = 1e-5
WEIGHTS = {"pos": 1.0, "ner": 0.6, "dep": 0.25}


def test_gradients_by_hand_are_those_of_the_loss(lert: Any, shape: Any, make_example: Any) -> None:
    """Central differences of four numbers of each parameter: 4e-10 apart at most."""
    generator = np.random.default_rng(3)
    parameters, example = lert.random_parameters(shape, generator), make_example(1, segments=True)

    def loss() -> float:
        losses = lert.losses_of(lert.forward(parameters, shape, example), example, lert.OURS)
        return float(losses["mlm"] + sum(WEIGHTS[task] * losses[task] for task in WEIGHTS))

    total, gradients = lert.differentiate(parameters, shape, example, WEIGHTS, lert.OURS)
    assert total == pytest.approx(loss(), abs=1e-12)
    for name, values in parameters.items():
        for _ in range(4):
            place = tuple(generator.integers(0, size) for size in values.shape)
            before = values[place]
            values[place] = before + STEP
            above = loss()
            values[place] = before - STEP
            slope = (above - loss()) / (2 * STEP)
            values[place] = before
            assert gradients[name][place] == pytest.approx(slope, abs=2e-8), (name, place)


def test_what_is_padded_changes_nothing(lert: Any, shape: Any, make_example: Any) -> None:
    parameters = lert.random_parameters(shape, np.random.default_rng(0))
    example = make_example(0)
    ids = np.where(example.input_mask == 1, example.input_ids, 17)
    one, other = (
        lert.forward(parameters, shape, example._replace(input_ids=each))
        for each in (example.input_ids, ids)
    )
    real = example.input_mask == 1
    for there, here in zip(one.hidden[1:], other.hidden[1:], strict=True):
        assert np.array_equal(there[real], here[real])
        assert not np.array_equal(there[~real], here[~real])


def test_a_layer_norm_is_the_published_one(lert: Any, shape: Any, make_example: Any) -> None:
    parameters = lert.random_parameters(shape, np.random.default_rng(0))
    name = f"bert/encoder/layer_{shape.layers - 1}/output/LayerNorm"
    parameters[f"{name}/gamma"][:], parameters[f"{name}/beta"][:] = 2.0, 5.0
    last = lert.forward(parameters, shape, make_example(0)).hidden[-1]
    assert last.mean(-1) == pytest.approx(5.0)
    assert last.std(-1) == pytest.approx(2.0)


def test_gelu_is_the_exact_one(lert: Any) -> None:
    x = np.linspace(-4, 4, 33)
    area = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in x])
    assert lert.gelu(x) == pytest.approx(x * area, abs=1e-15)
    slopes = (lert.gelu(x + STEP) - lert.gelu(x - STEP)) / (2 * STEP)
    assert lert.gelu_slope(x) == pytest.approx(slopes, abs=1e-9)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, (0, 0, 0)), (333_000, (1, 0.5, 0.333)), (1_000_000, (1, 1, 1)), (1_999_999, (1, 1, 1))],
)
def test_lip_weights_are_the_published_ones(lert: Any, step: int, expected: Any) -> None:
    ends = {"pos": 333_000, "ner": 666_000, "dep": 1_000_000}
    assert tuple(lert.lip_weights(step, ends).values()) == pytest.approx(expected)


def test_an_unknown_tag_counts_in_the_published_mean_alone(
    lert: Any, shape: Any, make_example: Any
) -> None:
    example = make_example(0)
    result = lert.forward(lert.random_parameters(shape, np.random.default_rng(0)), shape, example)
    published, ours = (
        lert.losses_of(result, example, each) for each in (lert.PUBLISHED, lert.OURS)
    )
    for task, tags in example.tags.items():
        share = (tags >= 0).sum() / (len(tags) + 1e-5)
        assert published[task] == pytest.approx(share * ours[task])
        assert 0 < (tags >= 0).sum() < len(tags)


def test_the_rate_of_the_schedule(adamw: Any) -> None:
    rates = [adamw.learning_rate(s, peak=1e-4, steps=100, warmup=10) for s in (0, 5, 10, 60, 100)]
    assert rates == pytest.approx([0.0, 5e-5, 9e-5, 4e-5, 0.0])


def test_an_update_by_hand(adamw: Any) -> None:
    parameters = {"a/kernel": np.array([[1.0]]), "a/bias": np.array([1.0])}
    gradients = {"a/kernel": np.array([[3.0]]), "a/bias": np.array([4.0])}
    norm = adamw.AdamW().update(parameters, gradients, 0.01)
    assert norm == pytest.approx(5.0)
    move = 0.1 * 0.6 / (math.sqrt(0.001) * 0.6 + 1e-6)
    assert parameters["a/kernel"].item() == pytest.approx(1 - 0.01 * (move + 0.01))
    move = 0.1 * 0.8 / (math.sqrt(0.001) * 0.8 + 1e-6)
    assert parameters["a/bias"].item() == pytest.approx(1 - 0.01 * move)
