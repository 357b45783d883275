"""Folders of fine-tunings as `lert-ds finetune` leaves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds.finetune.tasks import TASKS


@pytest.fixture
def write_finetune() -> Callable[..., Path]:
    """Folder, task, model to start from, split → values of the seeds, changes → the folder."""

    def write(
        folder: Path,
        task: str = "ocnli",
        start: str = "runs/lert-small/model",
        scores: dict[str, list[float]] | None = None,
        **changes: Any,
    ) -> Path:
        given = {"dev": [0.7, 0.71, 0.75]} if scores is None else scores
        count = max(map(len, given.values()), default=1)
        names = TASKS[task].metrics
        record = {
            "kind": "finetune",
            "task": task,
            "title": TASKS[task].title,
            "start": start,
            "scores": {
                split: {
                    name: {"max": max(values), "mean": sum(values) / len(values)} for name in names
                }
                for split, values in given.items()
            },
            "shown": list(names),
            "seeds": list(range(1, count + 1)),
            "examples": {"train": 10**6, "dev": 100},
            "files": {split: TASKS[task].files[split][0] for split in ("train", "dev", "test")
                      if TASKS[task].files[split]},
            **changes,
        }  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(record), "utf-8")
        return folder

    return write


@pytest.fixture
def write_seed() -> Callable[[Path, int], Path]:
    """Folder of a fine-tuning, number → the folder of a seed, with metrics."""

    def write(folder: Path, number: int) -> Path:
        seed = folder / f"seed-{number}"
        seed.mkdir(parents=True)
        line = {"kind": "valid", "step": 1, "accuracy": 0.5 + number / 100}
        (seed / "metrics.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
        (seed / "config.json").write_text("{}", "utf-8")
        return seed

    return write
