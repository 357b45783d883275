"""Run folders → runs in memory: the curves, events and origin of each, and what was amiss.

A run folder holds `metrics.jsonl`, `config.json` and, once the training has ended, `summary.json`
and `model/run.json`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lert_ds.errors import UserError
from lert_ds.report.metrics import (
    BrokenLineError,
    Metrics,
    json_number,
    json_object,
    read_metrics,
)

_OF_NO_TRAINING = ("masks.safetensors", "report.json")
"""What pruning and export leave in their folders."""


@dataclass(frozen=True)
class Run:
    """One training as its folder tells it."""

    name: str
    """What tells it from the other runs of the page: the end of the folder's path."""
    folder: Path
    config: Mapping[str, Any]
    """The resolved configuration, nested; empty where there is no config.json."""
    summary: Mapping[str, Any]
    """summary.json; empty while the training goes on."""
    origin: Mapping[str, Any]
    """model/run.json: versions, git commit and the like; empty while the training goes on."""
    metrics: Metrics
    baselines: Mapping[str, Mapping[str, float]]
    """metric → label → value of a trivial solution to compare with."""
    notes: Sequence[str]
    """What was left out or replaced while reading, a sentence each."""


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of `folders`, in their order.

    Raises:
        UserError: a folder that is none, is named twice or has no metrics, or a broken file.
    """
    resolved = [folder.resolve() for folder in folders]
    for place, folder in enumerate(resolved):
        if folder in resolved[:place]:
            raise UserError(f"{folders[place]}: the run is named twice; name each run once")
    return [read_run(*pair) for pair in zip(folders, telling_names(resolved), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Return the run in `folder` under `name`.

    Raises:
        UserError: no such folder, no metrics in it, or a broken file, named with its line.
    """
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder}: {what}; name the folder that a training wrote")
    if any((folder / name).is_file() for name in _OF_NO_TRAINING):
        raise UserError(
            f"{folder}: a pruned or an exported model has no curves; name the folder of a "
            "training, or of a benchmark of it"
        )
    metrics = read_metrics(folder / "metrics.jsonl")
    config = _read_object(folder / "config.json")
    summary = _read_object(folder / "summary.json") or {}
    missing = ["there is no config.json: the configuration is unknown"] if config is None else []
    return Run(
        name=name,
        folder=folder,
        config=config or {},
        summary=summary,
        origin=_read_object(folder / "model" / "run.json") or {},
        metrics=metrics,
        baselines=_baselines(summary, folder / "summary.json"),
        notes=(*missing, *metrics.notes),
    )


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        return json_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that first") from error
    except BrokenLineError as error:
        raise UserError(
            f"{path}: not a JSON object ({error}); mend it, or move it away to report without it"
        ) from error


def _baselines(summary: Mapping[str, Any], path: Path) -> dict[str, dict[str, float]]:
    given = summary.get("baselines") or {}
    if not isinstance(given, dict):
        raise UserError(f'{path}: "baselines" is not an object; write metric → label → number')
    found: dict[str, dict[str, float]] = {}
    for metric, lines in given.items():
        for label, given_value in (lines if isinstance(lines, dict) else {"": None}).items():
            value = json_number(given_value)
            if value is None or not math.isfinite(value):
                raise UserError(
                    f'{path}: "baselines" of {metric} is not an object of numbers; '
                    "write metric → label → number"
                )
            found.setdefault(metric, {})[label] = value
    return found


def telling_names(folders: Sequence[PurePath], least: int = 1) -> list[str]:
    """Return the shortest ends of the paths, the same count of parts each, that tell all apart.

    Args:
        folders: Paths, or names on the hub.
        least: Parts of an end, where a path has so many.
    """
    deepest = max((len(folder.parts) for folder in folders), default=1)
    for depth in range(least, max(least, deepest) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
