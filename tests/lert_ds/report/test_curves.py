"""Curves for the page: thinned without losing an extreme, every metric in one section."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.report.curves import MAX_POINTS, means, payload, sections, thin
from lert_ds.report.metrics import Curve
from lert_ds.report.runs import Run, read_runs


@given(st.integers(1, 5000), st.integers(4, 1000), st.integers(0, 2**32 - 1))
def test_thinning_keeps_ends_and_extremes(size: int, most: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=size)
    curve = Curve(np.arange(size, dtype=float) * 3, values)
    thinned = thin(curve, most)
    assert len(thinned.steps) <= max(most, 0)
    assert (np.diff(thinned.steps) > 0).all()
    assert thinned.values.min() == values.min()
    assert thinned.values.max() == values.max()
    assert thinned.steps[[0, -1]].tolist() == curve.steps[[0, -1]].tolist()
    # Every point is one of the curve's own.
    assert thinned.values.tolist() == values[(thinned.steps / 3).astype(int)].tolist()


def test_a_spike_of_one_report_survives() -> None:
    values = np.ones(200_000)
    values[123_457] = 9.0
    thinned = thin(Curve(np.arange(200_000.0), values))
    assert len(thinned.steps) <= MAX_POINTS
    assert thinned.steps[thinned.values == 9.0].tolist() == [123_457]


def test_a_short_curve_is_left_as_it_is() -> None:
    curve = Curve(np.arange(1000.0), np.arange(1000.0))
    assert thin(curve) is curve


def test_means_are_of_equal_stretches() -> None:
    curve = means(Curve(np.arange(10.0), np.arange(10.0) ** 2), 5)
    assert curve.steps.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert curve.values.tolist() == [0.5, 6.5, 20.5, 42.5, 72.5]


def test_known_metrics_have_a_fixed_order() -> None:
    metrics = [
        "mfu", "pos/macro_f1", "memory_gib", "dep/loss", "loss", "mlm/perplexity", "pos/loss",
        "learning_rate", "mlm/loss", "pos/accuracy", "mlm/accuracy", "pos/weight", "ner/loss",
        "gradient_norm", "tokens_per_second", "chunk/accuracy", "mlm/agreement", "mlm/kl",
        "kd/pos", "kd/mlm", "match/hidden_mse", "hard/loss",
    ]  # fmt: skip
    assert [(part.title, part.metrics) for part in sections(metrics)] == [
        (
            "Loss",
            ("loss", "mlm/loss", "pos/loss", "ner/loss", "dep/loss", "hard/loss", "mlm/perplexity"),
        ),
        ("Accuracy", ("mlm/accuracy", "pos/accuracy", "chunk/accuracy")),
        ("F1", ("pos/macro_f1",)),
        ("Agreement with the teacher", ("mlm/agreement", "mlm/kl")),
        ("Task weights (LIP)", ("pos/weight",)),
        ("Distillation: logits", ("kd/mlm", "kd/pos")),
        ("Distillation: features", ("match/hidden_mse",)),
        ("Optimiser", ("learning_rate", "gradient_norm")),
        ("Throughput and memory", ("tokens_per_second", "mfu", "memory_gib")),
    ]
    assert [part.title for part in sections(metrics) if part.is_loss] == ["Loss"]


def test_unknown_metrics_stand_under_their_task_and_new_losses_among_the_losses() -> None:
    found = {part.title: part.metrics for part in sections(
        ["distill/hidden_mse", "zeta", "prune/sparsity", "distill/kd_loss", "a/b/c", "alpha"]
    )}  # fmt: skip
    assert found == {
        "Loss": ("distill/kd_loss",),
        "a/b": ("a/b/c",),
        "distill": ("distill/hidden_mse",),
        "prune": ("prune/sparsity",),
        "Other": ("alpha", "zeta"),
    }
    assert next(iter(found)) == "Loss"
    assert list(found)[-1] == "Other"


@given(st.lists(st.text(st.sampled_from("ab/_loss f1"), min_size=1, max_size=12)))
def test_every_metric_has_exactly_one_chart(metrics: list[str]) -> None:
    charts = [metric for part in sections(metrics) for metric in part.metrics]
    assert sorted(charts) == sorted(set(metrics))


def runs_of(folder: Path, **texts: list[dict[str, object]]) -> list[Run]:
    for name, lines in texts.items():
        (folder / name).mkdir()
        text = "".join(json.dumps({"kind": "train", **line}) + "\n" for line in lines)
        (folder / name / "metrics.jsonl").write_text(text)
    return read_runs([folder / name for name in texts])


def test_an_axis_is_offered_where_every_run_has_it(tmp_path: Path) -> None:
    runs = runs_of(
        tmp_path,
        a=[{"step": 1, "samples": 8, "tokens": 99, "time": 3600.0, "loss": 1.0},
           {"step": 3, "samples": 24, "tokens": 300, "time": 7200.0, "loss": 1.0}],
        b=[{"step": 1, "samples": 8, "time": 100.0, "loss": 1.0}],
    )  # fmt: skip
    assert payload(runs)["axes"] == ["samples", "hours"]
    assert payload(runs[:1])["axes"] == ["samples", "tokens", "hours"]
    assert payload(runs)["runs"][0]["clock"]["hours"] == {"s": [1, 3], "v": [0, 1]}


def test_a_clock_that_was_set_back_does_not_fold_a_curve(tmp_path: Path) -> None:
    times = [7200.0, 3600.0, 10800.0]
    runs = runs_of(tmp_path, a=[{"step": i, "time": t, "loss": 1.0} for i, t in enumerate(times)])
    hours = payload(runs)["runs"][0]["clock"]["hours"]["v"]
    assert hours == sorted(hours)


def test_runs_share_a_baseline_of_the_same_label_and_value(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, **{name: [{"step": 1, "loss": 1.0}] for name in "abc"})
    for folder, value in zip("abc", (6.1, 6.1, 7.0), strict=True):
        tree = {"baselines": {"loss": {"unigram": value}}}
        (tmp_path / folder / "summary.json").write_text(json.dumps(tree))
    runs = read_runs([run.folder for run in runs])
    assert payload(runs)["baselines"] == {
        "loss": [
            {"label": "unigram", "value": 6.1, "runs": [0, 1]},
            {"label": "unigram", "value": 7.0, "runs": [2]},
        ]
    }


@pytest.mark.parametrize("value", [0.000123456789, 3.0, 65536.0, 1e20])
def test_values_keep_six_digits(tmp_path: Path, value: float) -> None:
    runs = runs_of(tmp_path, a=[{"step": 123_456_789, "loss": value}])
    curve = payload(runs)["runs"][0]["curves"]["loss"]["train"]
    assert curve["s"] == [123_456_789]
    assert curve["v"][0] == pytest.approx(value, rel=1e-5)
