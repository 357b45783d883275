"""Runs → what the tables of a report say: facts of each run, final and best values, differences."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import numpy as np

from lert_ds.report.metrics import Curve
from lert_ds.report.runs import Run

# By the last word of a metric's name.
_LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ppl", "error", "mse", "mae", "kl"})
_HIGHER_IS_BETTER = frozenset(
    {
        "accuracy",
        "agreement",
        "f1",
        "em",
        "average",
        "precision",
        "recall",
        "match",
        "correlation",
        "mcc",
        "auc",
        "uas",
        "las",
    }
)


def direction(metric: str) -> int:
    """Return -1 where a lower value of `metric` is better, 1 where a higher one is, 0 unknown."""
    word = metric.rpartition("/")[2].rpartition("_")[2]
    return -1 if word in _LOWER_IS_BETTER else int(word in _HIGHER_IS_BETTER)


def summarize(run: Run) -> dict[str, Any]:
    """Return what there is to say of `run` in a table, as JSON values; None is unknown.

    `wall_seconds` runs from the first line to the last, pauses before a resume included;
    `tokens_per_second` and `mfu` are medians over the reports, `memory_gib` the maximum.
    """
    train = {name: kinds["train"] for name, kinds in run.metrics.curves.items() if "train" in kinds}
    started = _utc(run.metrics.started)
    given = _first_of(run, "versions", dict) or {}
    versions = {str(name): str(value) for name, value in given.items()}
    return {
        "name": run.name,
        "folder": str(run.folder),
        "steps": _last_step(run),
        "steps_planned": _at(run.config, "train", "steps"),
        "samples": _last_of(run.metrics.clock.get("samples")),
        "tokens": _last_of(run.metrics.clock.get("tokens")),
        "started": started.isoformat() if started else None,
        "wall_seconds": None
        if run.metrics.started is None or run.metrics.ended is None
        else run.metrics.ended - run.metrics.started,
        "tokens_per_second": _median(train.get("tokens_per_second")),
        "mfu": _median(train.get("mfu")),
        "memory_gib": float(train["memory_gib"].values.max()) if "memory_gib" in train else None,
        "skipped_steps": _last_of(train.get("skipped_steps")),
        "parameters": _first_of(run, "parameters", int),
        "git_commit": versions.pop("commit", None) or _first_of(run, "git_commit", str),
        "versions": versions,
        "metrics": {
            metric: {kind: _final_and_best(metric, curve) for kind, curve in kinds.items()}
            for metric, kinds in run.metrics.curves.items()
        },
        "baselines": {metric: dict(lines) for metric, lines in run.baselines.items()},
        "notes": list(run.notes),
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `a.b` → value as text, for every leaf of a nested configuration."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{key}"] = text
    return flat


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Return the keys whose values are not the same in all `configs`: one text or None for each."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(chain.from_iterable(flat))
    rows = {key: [config.get(key) for config in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def duration(seconds: float) -> str:
    """Return a span of time as people write it: 42 s, 5 min 3 s, 2 h 7 min, 3 d 4 h."""
    total = max(0, round(seconds))
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {total % 60} s" if minutes else f"{total} s"


def short_number(value: float) -> str:
    """Return a value to four digits, whole numbers from 1,000 with separators."""
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:.4g}"


def count(value: float) -> str:
    """Return a count of things, every digit of it."""
    return f"{value:,.0f}"


def _final_and_best(metric: str, curve: Curve) -> dict[str, float | int | None]:
    sign = direction(metric)
    best = int(np.argmax(sign * curve.values)) if sign else None  # the first of equals
    return {
        "final": float(curve.values[-1]),
        "final_step": int(curve.steps[-1]),
        "best": None if best is None else float(curve.values[best]),
        "best_step": None if best is None else int(curve.steps[best]),
    }


def _last_step(run: Run) -> int:
    curves: Iterable[Curve] = chain.from_iterable(
        kinds.values() for kinds in run.metrics.curves.values()
    )
    ends = [int(curve.steps[-1]) for curve in curves]
    return max([*ends, *(event.step or 0 for event in run.metrics.events)], default=0)


def _last_of(curve: Curve | None) -> int | None:
    return None if curve is None else int(curve.values[-1])


def _median(curve: Curve | None) -> float | None:
    if curve is None:
        return None
    # The first report carries the warm-up: compiling, the first batches of the loader.
    settled = curve.values[1:] if len(curve.values) > 2 else curve.values
    return float(np.median(settled))


def _at(tree: Mapping[str, Any], *keys: str) -> Any:
    found: Any = tree
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _first_of(run: Run, name: str, kind: type) -> Any:
    """Return `name` from the result's record or else the summary, where it is of that kind."""
    for tree in (run.origin, run.summary):
        value = tree.get(name)
        if isinstance(value, kind) and not isinstance(value, bool):
            return value
    return None


def _utc(time: float | None) -> datetime | None:
    if time is None or not math.isfinite(time):
        return None
    try:
        return datetime.fromtimestamp(time, UTC)
    except (OverflowError, OSError, ValueError):  # a clock that was never set: no date to show
        return None
