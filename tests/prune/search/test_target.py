import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.model_dir import count_parameters
from lert_ds.model_surgery import cut_config
from prune.importance.scores import Scores
from prune.search import latency
from prune.search.cost import LinearCost, parameter_cost, parts_of, size_cost
from prune.search.latency import LatencyTable
from prune.search.target import Candidate, TargetConfig, candidates, cost_of

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 12,
    "max_position_embeddings": 8,
}
CONFIG = LertConfig(**SHAPE)
ORDERS = ((0, 1, 2), (0, 2), (1,))


def draw_scores(config: LertConfig, seed: int, zeros: float = 0.0) -> Scores:
    generator = torch.Generator().manual_seed(seed)

    def of(count: int) -> torch.Tensor:
        values = torch.rand(count, generator=generator)
        return values * (torch.rand(count, generator=generator) >= zeros)

    layers = range(config.num_hidden_layers)
    return Scores(
        "fisher",
        tuple(of(config.heads_of(number)) for number in layers),
        tuple(of(config.intermediate_size_of(number)) for number in layers),
        1,
    )


def with_pieces(config: LertConfig, candidate: Candidate) -> LertConfig:
    """Return the configuration that a candidate comes to, its vocabulary cut too."""
    smaller = cut_config(config, candidate.cut_without_pieces)
    smaller.vocab_size = candidate.vocabulary_size
    return smaller


def kept_importance(scores: Scores, candidate: Candidate, layers: Sequence[int]) -> float:
    shape = candidate.cut_without_pieces
    assert shape.heads is not None
    assert shape.neurons is not None
    kept = [scores.heads[n][torch.tensor(shape.heads[n], dtype=torch.bool)].sum() for n in layers]
    kept += [scores.neurons[n][shape.neurons[n]].sum() for n in layers]
    whole = sum(values.sum() for values in (*scores.heads, *scores.neurons))
    return float(sum(kept) / whole) if whole else 0.0


costs = st.builds(
    LinearCost,
    name=st.just("latency_ms"),
    fixed=st.floats(0, 5),
    layer=st.floats(0, 5),
    head=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    neuron=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    piece=st.sampled_from([0.0, 0.02]),
) | st.just(parameter_cost(CONFIG))


@settings(max_examples=120, deadline=None)
@given(
    cost=costs,
    share=st.floats(0, 1.1),
    multiple_of=st.sampled_from([1, 2, 4]),
    minimum_heads=st.integers(0, 2),
    minimum_neurons=st.integers(0, 5),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_candidates_meet_the_limit_and_use_it(
    cost: LinearCost,
    share: float,
    multiple_of: int,
    minimum_heads: int,
    minimum_neurons: int,
    zeros: float,
    seed: int,
) -> None:
    scores = draw_scores(CONFIG, seed, zeros)
    limit = share * cost(CONFIG)
    rules: dict[str, Any] = {
        "layer_orders": ORDERS,
        "vocabulary_sizes": (60, 30),
        "multiple_of": multiple_of,
        "minimum_heads": minimum_heads,
        "minimum_neurons": minimum_neurons,
    }
    # A layer's minimum in whole groups, of 12 neurons.
    least_neurons = -(-minimum_neurons // multiple_of) * multiple_of
    able = set()
    for layers, pieces in itertools.product(ORDERS, (60, 30)):
        fewest = {"fixed": 1, "layer": len(layers), "piece": pieces}
        fewest |= {"head": minimum_heads * len(layers), "neuron": least_neurons * len(layers)}
        if cost.of(fewest) <= limit * (1 + 1e-9):
            able.add((layers, pieces))
    if not able:
        with pytest.raises(ConfigError, match=f"^{cost.name} = "):
            candidates(CONFIG, scores, cost, limit, **rules)
        return
    found = candidates(CONFIG, scores, cost, limit, **rules)
    layers_of = [one.cut_without_pieces.layers or (0, 1, 2) for one in found]
    pairs = [(layers, one.vocabulary_size) for layers, one in zip(layers_of, found, strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == able
    slack = 1e-9 * limit + 1e-12
    for layers, one in zip(layers_of, found, strict=True):
        smaller = with_pieces(CONFIG, one)
        assert one.cost == pytest.approx(cost(smaller))
        assert one.cost <= limit + slack
        parts = parts_of(smaller)
        if parts["head"] < 4 * len(layers):
            assert one.cost + cost.head > limit - slack
        if parts["neuron"] < 12 * len(layers):
            assert one.cost + multiple_of * cost.neuron > limit - slack
        for number in range(len(layers)):
            assert smaller.heads_of(number) >= minimum_heads
            assert smaller.intermediate_size_of(number) >= least_neurons
            assert smaller.intermediate_size_of(number) % multiple_of == 0
        assert one.importance == pytest.approx(kept_importance(scores, one, layers), abs=1e-6)
    importances = [one.importance for one in found]
    assert importances == sorted(importances, reverse=True)
    # A looser limit keeps no less.
    looser = candidates(CONFIG, scores, cost, 1.3 * limit + 1e-6, **rules)
    by_pair = {
        (one.cut_without_pieces.layers or (0, 1, 2), one.vocabulary_size): one for one in looser
    }
    for pair, one in zip(pairs, found, strict=True):
        assert by_pair[pair].importance >= one.importance - 1e-9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 1))
def test_no_other_choice_keeps_more(seed: int, share: float) -> None:
    """Every choice of whole numbers of the best units that keeps one in each layer, tried out."""
    config = LertConfig(**SHAPE | {"num_hidden_layers": 2, "intermediate_size": 4})
    scores = draw_scores(config, seed)
    cost = LinearCost("latency_ms", 0, 0, 1.0, 0.37, 0)
    limit = max(share * cost(config), cost.of({"head": 2, "neuron": 2}))
    (found,) = candidates(config, scores, cost, limit, layer_orders=[(0, 1)], vocabulary_sizes=[60])
    best = 0.0
    values = [v.sort(descending=True).values.cumsum(0) for v in (*scores.heads, *scores.neurons)]
    for counts in itertools.product(range(1, 5), repeat=4):
        if counts[0] + counts[1] + 0.37 * (counts[2] + counts[3]) <= limit + 1e-9:
            kept = sum(float(v[n - 1]) for v, n in zip(values, counts, strict=True))
            best = max(best, kept)
    whole = sum(float(v[-1]) for v in values)
    assert found.importance == pytest.approx(best / whole, rel=1e-5)


def test_parameters_are_those_of_the_model() -> None:
    limit = 0.6 * count_parameters(CONFIG)
    found = candidates(
        CONFIG,
        draw_scores(CONFIG, 0),
        parameter_cost(CONFIG),
        limit,
        layer_orders=ORDERS,
        vocabulary_sizes=(40,),
    )
    for one in found:
        assert one.cost == count_parameters(with_pieces(CONFIG, one)) <= limit


def test_a_pruned_model_is_pruned_further() -> None:
    config = LertConfig(
        **SHAPE, layer_attention_heads=[4, 0, 1], layer_intermediate_sizes=[0, 12, 3]
    )
    (found,) = candidates(
        config,
        draw_scores(config, 0),
        LinearCost("latency_ms", 0, 0, 1, 1, 0),
        11,
        layer_orders=[(0, 1, 2)],
        vocabulary_sizes=[60],
        multiple_of=4,
    )
    smaller = with_pieces(config, found)
    assert found.cost <= 11
    assert [smaller.heads_of(n) > 0 for n in range(3)] == [True, False, True]
    assert [smaller.intermediate_size_of(n) for n in range(3)] == [0, 4, 3]


def test_the_list_is_short_and_every_vocabulary_is_in_it() -> None:
    orders = [tuple(range(count)) for count in (3, 2, 1)]
    found = candidates(
        CONFIG,
        draw_scores(CONFIG, 0),
        LinearCost("latency_ms", 0, 1, 1, 1, 1),
        80,
        layer_orders=orders,
        vocabulary_sizes=[60, 50, 40],
        most=5,
    )
    assert len(found) == 5
    assert {one.vocabulary_size for one in found} == {60, 50, 40}


def test_what_no_shape_meets_is_refused_with_the_smallest_there_is() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^size_mb = 0.001: .* has 0.*, with layers 1, heads 2, neurons 4, pieces 30: ask",
    ):
        candidates(
            CONFIG,
            draw_scores(CONFIG, 0),
            size_cost(CONFIG, "fp32"),
            0.001,
            layer_orders=ORDERS,
            vocabulary_sizes=(60, 30),
            multiple_of=4,
            minimum_heads=2,
        )


def configure(**changes: Any) -> TargetConfig:
    return parse(TargetConfig, changes, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no target: name one of parameters, size_mb, latency_ms"),
        ({"parameters": 5, "size_mb": 1.0}, "parameters and size_mb: name one"),
        ({"parameters": 5, "size_of": "int8"}, "size_of has no part in a target of parameters"),
        ({"size_mb": 5, "table": "t.json"}, "table has no part in a target of size_mb"),
        ({"latency_ms": 5, "size_of": "int8"}, "size_of has no part in a target of latency_ms"),
        ({"latency_ms": 0}, "latency_ms = 0"),
        ({"parameters": -1}, "parameters = -1"),
        ({"latency_ms": 5, "runtime": "tflite"}, "runtime = 'tflite'"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(**changes)


def test_a_target_names_its_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parameters, size = configure(parameters=5), configure(size_mb=2.5, size_of="int8")
    assert (parameters.limit, size.limit) == (5, 2.5)
    assert cost_of(parameters, CONFIG) == parameter_cost(CONFIG)
    assert cost_of(size, CONFIG) == size_cost(CONFIG, "int8")
    asked = []

    def reuse(*arguments: Any, **settings: Any) -> LatencyTable:
        asked.append((arguments, settings))
        return LatencyTable({}, LinearCost("latency_ms", 1, 2, 3, 4, 5), ())

    monkeypatch.setattr(latency, "reuse", reuse)
    target = configure(latency_ms=3, table=str(tmp_path / "t"), length=8, threads=2, batch_size=4)
    assert cost_of(target, CONFIG).head == 3
    settings = {"batch_size": 4, "length": 8, "threads": 2}
    assert asked == [((tmp_path / "t", CONFIG, "onnx_int8"), settings)]
