"""What the tables say: final and best values, medians, differences between configurations."""

import json
from pathlib import Path
from typing import Any

import pytest

from lert_ds.report.runs import Run, read_run
from lert_ds.report.summary import differences, direction, duration, flatten, summarize


def run_of(folder: Path, *lines: dict[str, Any], **files: Any) -> Run:
    (folder / "model").mkdir(parents=True)
    text = "".join(json.dumps({"kind": "train", "step": 1, **line}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    for name, tree in files.items():
        (folder / f"{name.replace('_', '/')}.json").write_text(json.dumps(tree))
    return read_run(folder, folder.name)


def test_final_and_best_follow_the_direction_of_the_metric(tmp_path: Path) -> None:
    lines = [
        {"kind": "valid", "step": step, "mlm/loss": loss, "pos/accuracy": share, "sparsity": 0.1}
        for step, loss, share in [(10, 3.0, 0.2), (20, 2.0, 0.6), (30, 2.0, 0.6), (40, 2.5, 0.5)]
    ]
    metrics = summarize(run_of(tmp_path / "a", *lines))["metrics"]
    # The first of equals is the best: the earliest checkpoint that is as good.
    assert metrics["mlm/loss"]["valid"] == {
        "final": 2.5, "final_step": 40, "best": 2.0, "best_step": 20,
    }  # fmt: skip
    assert metrics["pos/accuracy"]["valid"]["best"] == 0.6
    assert metrics["pos/accuracy"]["valid"]["best_step"] == 20
    assert metrics["sparsity"]["valid"]["best"] is None


def test_facts_of_a_finished_run(tmp_path: Path) -> None:
    rates = [(10, 5.0), (20, 100.0), (30, 110.0), (40, 120.0)]
    lines = [
        {"step": step, "samples": 4 * step, "time": 1e9 + step, "tokens_per_second": rate,
         "memory_gib": rate / 10}
        for step, rate in rates
    ]  # fmt: skip
    run = run_of(
        tmp_path / "a",
        *lines,
        {"kind": "event", "step": 40, "time": 1e9 + 70, "message": "end"},
        config={"train": {"steps": 40}},
        model_run={"parameters": 7, "versions": {"torch": "2.13.0", "commit": "abc"}},
    )
    summary = summarize(run)
    assert summary["steps"] == 40
    assert summary["steps_planned"] == 40
    assert summary["samples"] == 160
    assert summary["wall_seconds"] == 60
    assert summary["started"] == "2001-09-09T01:46:50+00:00"
    assert summary["tokens_per_second"] == 110  # without the first report, the warm-up
    assert summary["memory_gib"] == 12
    assert summary["parameters"] == 7
    assert summary["git_commit"] == "abc"
    assert summary["versions"] == {"torch": "2.13.0"}
    json.dumps(summary, allow_nan=False)


def test_what_is_unknown_is_none(tmp_path: Path) -> None:
    summary = summarize(run_of(tmp_path / "a", {"loss": 1.0}))
    for key in ("steps_planned", "samples", "started", "wall_seconds", "parameters", "git_commit"):
        assert summary[key] is None
    assert summary["versions"] == {}


def test_only_what_differs_is_compared() -> None:
    one = {"seed": 1, "train": {"steps": 10, "rate": 1e-4}, "tags": ["a"], "extra": {}}
    two = {"seed": 1, "train": {"steps": 20, "rate": 1e-4}, "tags": ["a", "b"]}
    assert differences([one, two]) == {
        "train.steps": ["10", "20"],
        "tags": ['["a"]', '["a", "b"]'],
        "extra": ["{}", None],
    }
    assert differences([one, one]) == {}


def test_flatten_keeps_every_leaf() -> None:
    tree = {"a": {"b": {"c": None}}, "d": "text", "e": {}, "f": [{"g": 1}], "h": False}
    assert flatten(tree) == {
        "a.b.c": "null", "d": "text", "e": "{}", "f": '[{"g": 1}]', "h": "false",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("loss", -1), ("distill/kd_loss", -1), ("mlm/perplexity", -1), ("ner/macro_f1", 1),
     ("exact_match", 1), ("pos/weight", 0), ("learning_rate", 0), ("lossless", 0)],
)  # fmt: skip
def test_direction(metric: str, expected: int) -> None:
    assert direction(metric) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (90000, "1 d 1 h"), (-3, "0 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
