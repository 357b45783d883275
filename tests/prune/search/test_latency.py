"""The fit, the order of timing and the file; how well it predicts is for a benchmark."""

import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from prune.search import latency
from prune.search.cost import LinearCost, parts_of
from prune.search.latency import (
    Runtime,
    build,
    describe,
    family,
    fit,
    measure_table,
    read,
    reuse,
    time_in_turns,
)

CONFIG = LertConfig(
    vocab_size=400,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)
TRUE = LinearCost("latency_ms", 0.5, 0.4, 0.15, 0.0005, 0.0001)


def test_the_fit_finds_the_numbers_that_the_times_are_made_of() -> None:
    parts = [parts_of(shape) for shape in family(CONFIG)]
    for true in (TRUE, LinearCost("latency_ms", 0, 0.4, 0, 0.01, 0)):
        found = fit(parts, [true.of(part) for part in parts])
        for name in ("fixed", "layer", "head", "neuron", "piece"):
            assert getattr(found, name) == pytest.approx(getattr(true, name), abs=1e-9)


def relative_error(cost: LinearCost, parts: list[dict[str, int]], times: list[float]) -> float:
    return sum((cost.of(part) / ms - 1) ** 2 for part, ms in zip(parts, times, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    noise=st.lists(st.floats(0.2, 3), min_size=7, max_size=7),
    steps=st.lists(st.floats(-0.3, 0.3), min_size=5, max_size=5),
)
def test_no_numbers_of_0_or_more_come_nearer(noise: list[float], steps: list[float]) -> None:
    parts = [parts_of(shape) for shape in family(CONFIG)]
    times = [TRUE.of(part) * factor for part, factor in zip(parts, noise, strict=True)]
    found = fit(parts, times)
    names = ("fixed", "layer", "head", "neuron", "piece")
    values = np.array([getattr(found, name) for name in names])
    assert (values >= 0).all()
    scale = np.array([TRUE.fixed, TRUE.layer, TRUE.head, TRUE.neuron, TRUE.piece])
    other = (values + scale * np.array(steps)).clip(min=0)
    moved = LinearCost("latency_ms", **dict(zip(names, other.tolist(), strict=True)))
    assert relative_error(found, parts, times) <= relative_error(moved, parts, times) + 1e-9


class Clock:
    """Seconds that pass when a run says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        counter = itertools.count()

        def run() -> None:
            self.order.append(name)
            self.now += seconds(next(counter))

        return run


def test_runs_are_timed_in_turns_and_medians_withstand_a_busy_minute() -> None:
    clock = Clock()
    # Of 4 runs a round the first does not count; round 1 is busy, and one run of each other.
    slow = clock.run("slow", lambda k: 9.0 if k // 4 == 1 or k % 4 == 2 else 0.004)
    fast = clock.run("fast", lambda k: 7.0 if k % 4 == 0 else 0.001)
    found = time_in_turns([slow, fast], 3, 3, clock)
    assert found == pytest.approx([4.0, 1.0])
    assert clock.order == (["slow"] * 4 + ["fast"] * 4) * 3


def make_clocked(
    monkeypatch: pytest.MonkeyPatch, cost: LinearCost
) -> tuple[Clock, list[LertConfig]]:
    """Let building a model give a run that takes what `cost` says."""
    clock, built = Clock(), []

    def fake(config: LertConfig, runtime: Runtime, batch_size: int, length: int) -> Any:
        assert torch.get_num_threads() == 2
        built.append(config)
        return clock.run("model", lambda _: 1e-3 * cost(config))

    monkeypatch.setattr(latency, "build", fake)
    return clock, built


def test_a_table_predicts_shapes_that_were_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, built = make_clocked(monkeypatch, TRUE)
    before = torch.get_num_threads()
    table = measure_table(CONFIG, runtime="torch", length=16, threads=2, clock=clock)
    assert torch.get_num_threads() == before
    shape = LertConfig(
        vocab_size=111,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        layer_attention_heads=[4, 0, 1],
        layer_intermediate_sizes=[3, 9, 64],
        pad_token_id=0,
    )
    assert table.predict(shape) == pytest.approx(TRUE(shape))
    assert table.facts["threads"] == 2
    assert [shape for shape, _ in table.measured] == [parts_of(config) for config in built]
    assert max(config.num_hidden_layers for config in built) < CONFIG.num_hidden_layers
    for changes in ({"hidden_size": 64}, {"num_attention_heads": 2}):
        other = LertConfig(**{"hidden_size": 32, "num_attention_heads": 4, **changes})
        with pytest.raises(ConfigError, match=r"table: it was measured at \w+_size = "):
            table.predict(other)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 1},
        {"num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        {"layer_intermediate_sizes": [0, 8, 64, 3], "num_attention_heads": 2},
    ],
)
def test_the_family_tells_all_five_numbers(sizes: dict[str, Any]) -> None:
    config = LertConfig(**{"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 900} | sizes)
    rows = np.array([list(parts_of(shape).values()) for shape in family(config)], np.float64)
    wanted = 5 if config.num_attention_heads > 1 else 3
    assert np.linalg.matrix_rank(rows / rows.max(0)) == wanted


@pytest.mark.parametrize("runtime", ["torch", "onnx_int8"])
def test_what_is_timed_fills_one_mask_a_text(runtime: Runtime) -> None:
    config = LertConfig(
        vocab_size=90,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        layer_attention_heads=[1],
        intermediate_size=8,
        max_position_embeddings=8,
    )
    output: Any = build(config, runtime, 3, 7)()
    logits = output["logits"] if isinstance(output, Mapping) else output.logits
    assert tuple(logits.shape) == (3, 90)


def test_a_table_is_reused_until_something_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, built = make_clocked(monkeypatch, TRUE)
    path = tmp_path / "new" / "table.json"
    settings: dict[str, Any] = {"length": 16, "threads": 2, "clock": clock, "rounds": 1}
    made = reuse(path, CONFIG, "torch", **settings)
    assert read(path) == made
    count = len(built)
    assert reuse(path, CONFIG, "torch", **settings) == made
    assert len(built) == count
    reuse(path, CONFIG, "onnx_fp32", **settings)
    assert len(built) == 2 * count
    reuse(path, CONFIG, "onnx_fp32", **settings | {"length": 8})
    assert len(built) == 3 * count
    monkeypatch.setattr(latency.machine, "description", lambda _: {"cpu": "another"})
    reuse(path, CONFIG, "onnx_fp32", **settings | {"length": 8})
    assert len(built) == 4 * count
    reuse(None, CONFIG, "onnx_fp32", **settings | {"length": 8})
    assert len(built) == 5 * count
    assert read(path).facts["machine"] == {"cpu": "another"}


def test_facts_are_of_model_setting_and_machine() -> None:
    facts = describe(CONFIG, "torch")
    assert facts == json.loads(json.dumps(facts))
    assert facts["machine"]["cpu"]
    assert facts["machine"]["torch"] == torch.__version__
    assert "onnxruntime" not in facts["machine"]
    assert describe(CONFIG, "onnx_int8")["machine"]["onnxruntime"]
    assert (facts["hidden_size"], facts["head_size"], facts["length"]) == (32, 8, 128)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}'])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=f"table = {path}: no table"):
        reuse(path, CONFIG, "torch")


@pytest.mark.parametrize("length", [0, 17])
def test_more_tokens_than_positions_are_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"length = {length}: the model takes 1 to 16"):
        measure_table(CONFIG, runtime="torch", length=length)


def test_a_runtime_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "lert_ds.edge.graph", raising=False)
    with pytest.raises(ConfigError, match=r"runtime = onnx_fp32: onnxruntime is not .*\[export\]"):
        build(CONFIG, "onnx_fp32", 1, 8)
