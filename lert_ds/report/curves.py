"""Runs → the curves that a page draws: at most a thousand points each, sorted into sections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lert_ds.report.metrics import Curve, Floats
from lert_ds.report.runs import Run

MAX_POINTS = 1000
"""Of one curve: more than a chart has pixels."""
MAX_EVENTS = 500
"""Of one run, in the list and as marks; metrics.jsonl keeps the rest."""

_LOSS, _OTHER = "Loss", "Other"
_BY_LAST_WORD = {
    "loss": _LOSS,
    "perplexity": _LOSS,
    "accuracy": "Accuracy",
    "f1": "F1",
    "em": "Exact match",
    "agreement": "Agreement with the teacher",
    "kl": "Agreement with the teacher",
    "weight": "Task weights (LIP)",
}
_BY_NAME = {
    "kd": "Distillation: logits",
    "match": "Distillation: features",
    "learning_rate": "Optimiser",
    "gradient_norm": "Optimiser",
    "loss_scale": "Optimiser",
    "skipped_steps": "Optimiser",
    "tokens_per_second": "Throughput and memory",
    "mfu": "Throughput and memory",
    "data_wait_share": "Throughput and memory",
    "memory_gib": "Throughput and memory",
}
_SECTIONS = list(dict.fromkeys([*_BY_LAST_WORD.values(), *_BY_NAME.values()]))
_EXACT = frozenset({"weight", "learning_rate", "loss_scale", "skipped_steps", "memory_gib"})
_TASKS = ["", "mlm", "pos", "ner", "dep"]
_MEASURES = [*_BY_LAST_WORD, *_BY_NAME]


@dataclass(frozen=True)
class Section:
    """Charts that stand together."""

    title: str
    metrics: tuple[str, ...]
    is_loss: bool
    """Whether the switch for a logarithmic scale reaches its charts."""


def is_exact(metric: str) -> bool:
    """Return whether `metric` is set or counted, not measured: smoothing would falsify it."""
    return metric.rpartition("/")[2] in _EXACT or metric.partition("/")[0] in _EXACT


def sections(metrics: Sequence[str]) -> list[Section]:
    """Return every metric in exactly one section: known sections first, then the others by name.

    A metric is `measure` or `task/measure`. Unknown measures stand under their task's name.
    """
    found: dict[str, list[str]] = {}
    for metric in sorted(set(metrics), key=_place):
        found.setdefault(_section_of(metric), []).append(metric)
    known = [title for title in _SECTIONS if title in found]
    others = sorted(title for title in found if title not in _SECTIONS and title != _OTHER)
    last = [_OTHER] if _OTHER in found else []
    return [
        Section(title, tuple(found[title]), title == _LOSS) for title in [*known, *others, *last]
    ]


def thin(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """Return at most `most` points of `curve`: its ends, and each stretch's lowest and highest."""
    size = len(curve.steps)
    if size <= most:
        return curve
    kept = [0, size - 1]
    for stretch in np.array_split(np.arange(1, size - 1), (most - 2) // 2):
        values = curve.values[stretch]
        kept += [int(stretch[values.argmin()]), int(stretch[values.argmax()])]
    chosen = np.unique(kept)
    return Curve(curve.steps[chosen], curve.values[chosen])


def means(curve: Curve, most: int = MAX_POINTS // 2) -> Curve:
    """Return the means of `most` equal stretches of `curve`.

    Smoothing starts from these: the extremes that `thin` keeps would pull it towards the spikes.
    """
    stretches = np.array_split(np.arange(len(curve.steps)), most)
    steps = np.array([curve.steps[stretch].mean() for stretch in stretches])
    values = np.array([curve.values[stretch].mean() for stretch in stretches])
    return Curve(steps, values)


def payload(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the script draws, as JSON values."""
    return {
        "runs": [_run(run) for run in runs],
        "baselines": _baselines(runs),
        "axes": [axis for axis in ("samples", "tokens", "hours") if _has_axis(runs, axis)],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "curves": {
            metric: {kind: _curve(curve) for kind, curve in kinds.items()}
            for metric, kinds in run.metrics.curves.items()
        },
        "clock": {
            ("hours" if name == "time" else name): _clock(name, curve, run.metrics.started)
            for name, curve in run.metrics.clock.items()
        },
        "events": [
            [event.step, event.message]
            for event in run.metrics.events[:MAX_EVENTS]
            if event.step is not None
        ],
    }


def _curve(curve: Curve) -> dict[str, list[float]]:
    drawn = thin(curve)
    points = {"s": _numbers(drawn.steps), "v": _numbers(drawn.values)}
    if drawn is not curve:
        smooth = means(curve)
        points |= {"ms": _numbers(smooth.steps), "mv": _numbers(smooth.values)}
    return points


def _clock(name: str, curve: Curve, started: float | None) -> dict[str, list[float]]:
    """Return another axis as a table of steps and its values there, for linear interpolation."""
    size = len(curve.steps)
    chosen = np.unique(np.linspace(0, size - 1, min(size, MAX_POINTS)).round().astype(int))
    values = curve.values
    if name == "time":
        values = (values - (started or 0.0)) / 3600
    # A clock that was set back must not fold a curve onto itself.
    values = np.maximum.accumulate(values)
    return {"s": _numbers(curve.steps[chosen]), "v": _numbers(values[chosen], 9)}


def _baselines(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return metric → lines; runs that share a label and a value share the line."""
    lines: dict[str, dict[tuple[str, float], list[int]]] = {}
    for place, run in enumerate(runs):
        for metric, given in run.baselines.items():
            for label, value in given.items():
                lines.setdefault(metric, {}).setdefault((label, value), []).append(place)
    return {
        metric: [
            {"label": label, "value": value, "runs": places}
            for (label, value), places in found.items()
        ]
        for metric, found in lines.items()
    }


def _has_axis(runs: Sequence[Run], axis: str) -> bool:
    """Return whether every run knows its place on the axis: else they could not be compared."""
    name = "time" if axis == "hours" else axis
    return all(name in run.metrics.clock for run in runs)


def _numbers(values: Floats, digits: int = 6) -> list[float]:
    """Return short JSON numbers: six digits are finer than a pixel, whole numbers stay whole."""
    return [
        int(v) if v.is_integer() and abs(v) < 1e15 else float(f"{v:.{digits}g}") for v in values
    ]


def _section_of(metric: str) -> str:
    head, _, _ = metric.partition("/")
    task, _, measure = metric.rpartition("/")
    if head in _BY_NAME:
        return _BY_NAME[head]
    return _BY_LAST_WORD.get(measure.rpartition("_")[2]) or task or _OTHER


def _place(metric: str) -> tuple[int, int, str]:
    task, _, measure = metric.rpartition("/")
    word = measure.rpartition("_")[2]
    key = measure if measure in _MEASURES else word
    measure_rank = _MEASURES.index(key) if key in _MEASURES else len(_MEASURES)
    return measure_rank, _TASKS.index(task) if task in _TASKS else len(_TASKS), metric
