"""Scores of several seeds to what a table shows: the best and the mean."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lert_ds.finetune.seed_run import Plan
from lert_ds.finetune.task_data import TaskData

FILE = "summary.json"


def read(folder: Path) -> dict[str, Any]:
    """Return the summary of a finished fine-tuning; empty where there is none."""
    path = folder / FILE
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def summarize(plan: Plan, data: TaskData, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the best and the mean of each metric over the seeds, and what made them."""
    run = plan.run
    splits = [split for split in ("dev", "test") if split in scores[0]]
    best = max(scores, key=lambda one: one["dev"][data.task.score])  # the first of equals
    return {
        "kind": "finetune",
        "task": data.task.name,
        "title": data.task.title,
        "start": run.model,
        "parameters": plan.numbers.parameters,
        "scores": {
            split: {
                name: _over([float(one[split][name]) for one in scores])
                for name in scores[0][split]
            }
            for split in splits
        },
        "shown": list(data.task.metrics),
        "seeds": [one["seed"] for one in scores],
        "best_seed": best["seed"],
        "baselines": data.baselines(),
        "examples": {"train": len(data.train.examples), "dev": len(data.dev.examples)},
        "files": data.files,
        "max_length": data.max_length,
        "batch_size": run.train.batch_size,
        "learning_rate": run.train.learning_rate,
        "steps": run.train.steps,
        "seconds": round(sum(one["seconds"] for one in scores), 1),
        "processes": best["processes"],
        "versions": best["versions"],
    }


def _over(values: Sequence[float]) -> dict[str, Any]:
    return {
        "max": max(values),
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what the user is told of a fine-tuning: the best and, in brackets, the mean."""
    told = []
    for split, metrics in summary["scores"].items():
        shown = " / ".join(
            f"{100 * metrics[name]['max']:.1f} ({100 * metrics[name]['mean']:.1f})"
            for name in summary["shown"]
        )
        names = " / ".join(summary["shown"])
        told.append(f"{summary['title']} {split}: {shown}  {names}, best (mean) of "
                    f"{len(summary['seeds'])} seeds")  # fmt: skip
    return told
