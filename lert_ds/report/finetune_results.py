"""What `lert-ds finetune` wrote: folders to scores of tasks, checked before they are shown.

    runs/finetune-ocnli/summary.json   {"kind": "finetune", "task": "ocnli", "scores": {"dev": …}}
    runs/finetune-ocnli/seed-1/        metrics.jsonl: a run like any other, with curves

What a summary lacks is told by its name: a table of results is no place for guesses.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lert_ds.errors import UserError
from lert_ds.finetune.tasks import TASKS, Task
from lert_ds.report.metrics import BrokenLineError, json_number, json_object

SUMMARY, KIND = "summary.json", "finetune"
METRICS = "metrics.jsonl"
SPLITS = ("dev", "test")
_DEEPEST = 2
"""Folders below one that holds several: runs/finetune-ocnli, runs/lert-small/finetune-ocnli."""
_SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True)
class Finetune:
    """One fine-tuning as its folder tells it."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    """Content of summary.json."""

    @property
    def task(self) -> Task:
        """The task."""
        return TASKS[self.record["task"]]

    @property
    def start(self) -> str:
        """The model that it started from, as the user named it."""
        return str(self.record["start"])

    @property
    def seeds(self) -> int:
        """Runs that the best and the mean are of."""
        return len(self.record["seeds"])

    def score(self, split: str, metric: str) -> tuple[float, float] | None:
        """Return the best and the mean of a metric, from 0 to 1; None where there is no split."""
        found = self.record["scores"].get(split)
        return None if found is None else (found[metric]["max"], found[metric]["mean"])


def is_finetune(folder: Path) -> bool:
    """Return whether a folder holds the result of a fine-tuning."""
    path = folder / SUMMARY
    try:
        return path.is_file() and json_object(path.read_bytes()).get("kind") == KIND
    except (OSError, BrokenLineError):
        return False


def read_finetune(folder: Path) -> Finetune:
    """Return the fine-tuning in `folder`.

    Raises:
        UserError: what it holds is not what a fine-tuning writes.
    """
    path = folder / SUMMARY
    record = json_object(path.read_bytes())
    if wrong := _wrong(record):
        raise UserError(f"{path}: {wrong}, so no fine-tuning wrote it; run lert-ds finetune again")
    return Finetune(folder.resolve().name, folder, record)


def finetunes_below(folder: Path) -> list[Path]:
    """Return the folders of fine-tunings in one that holds several, by name; none of one itself."""
    if not folder.is_dir() or (folder / SUMMARY).exists() or (folder / METRICS).exists():
        return []
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEEPEST):
        level = sorted(p for one in level for p in one.iterdir() if p.is_dir() and _is_open(p))
        found += filter(is_finetune, level)
        level = [path for path in level if path not in found]
    return found


def seeds_of(folder: Path) -> list[Path]:
    """Return the folders of the seeds of a fine-tuning, finished or not, that have metrics."""
    if not folder.is_dir():
        return []
    numbered = [(path, _SEED.fullmatch(path.name)) for path in folder.iterdir()]
    by_number = sorted((int(match[1]), path) for path, match in numbered if match)
    return [path for _, path in by_number if (path / METRICS).is_file()]


def _is_open(folder: Path) -> bool:
    try:
        next(folder.iterdir(), None)
    except OSError:
        return False
    return True


def _wrong(record: Mapping[str, Any]) -> str:
    """Return what of a summary is not as it should be; nothing where all is."""
    task = record.get("task")
    if not isinstance(task, str) or task not in TASKS:
        return f"task = {task!r} is none"
    if not isinstance(record.get("start"), str) or not record["start"]:
        return "start names no model"
    if not isinstance(record.get("seeds"), list) or not record["seeds"]:
        return "seeds lists none"
    for key in ("files", "examples"):
        if not isinstance(record.get(key), dict):
            return f"{key} is no object"
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores.keys() & set(SPLITS):
        return f"scores has neither {' nor '.join(SPLITS)}"
    for split in scores.keys() & set(SPLITS):
        for metric in TASKS[task].metrics:
            if not _is_score(scores[split], metric):
                return f"scores.{split}.{metric} has no max and mean from 0 to 1"
    return ""


def _is_score(metrics: Any, metric: str) -> bool:
    found = metrics.get(metric) if isinstance(metrics, dict) else None
    if not isinstance(found, dict):
        return False
    values = [
        None if isinstance(found.get(key), bool) else json_number(found.get(key))
        for key in ("max", "mean")
    ]
    return all(value is not None and math.isfinite(value) and 0 <= value <= 1 for value in values)
