"""Parts of the tests of fine-tuning: tasks, features, and processes that answer together."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds import tokenizer_files
from lert_ds.finetune.tasks import TASKS


@pytest.fixture(scope="session")
def task_files(write_task: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of all ten tasks, a dozen examples each; not to be written to."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in TASKS:
        write_task(folder, name, 15)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    """The tokenizer of the tiny model: signs, marks, and letters one by one."""
    return tokenizer_files.load(tiny_model)


@pytest.fixture(scope="session")
def make_features() -> Callable[[Sequence[int]], list[Any]]:
    """Features of classes with given lengths."""
    from lert_ds.finetune.features import Feature

    def make(lengths: Sequence[int]) -> list[Any]:
        return [
            Feature(np.full(length, 5 + number % 50, np.int32), length // 2, number % 2, number)
            for number, length in enumerate(lengths)
        ]

    return make


class Gathered:
    """Stands for processes that each have had a share of the answers."""

    def __init__(self, others: Sequence[Any] = ()) -> None:
        self._others = list(others)

    def gather(self, value: Any) -> list[Any]:
        """Return what all have, the others first, as JSON carries it."""
        return json.loads(json.dumps([*self._others, value]))


@pytest.fixture(scope="session")
def gathered() -> type[Gathered]:
    """The class of processes that have answers of their own."""
    return Gathered


@pytest.fixture(scope="session")
def judge_in_shares() -> Callable[..., tuple[dict[str, float], Any]]:
    """Judge answers that come in batches to several processes, fillers among them.

    Makes a judge; the answers, one row a feature in each; the shares: process to batches of rows.
    Returns the values of the last process, and its predictions.
    """

    class Told(Exception):
        pass

    class Asking:
        def gather(self, value: Any) -> list[Any]:
            raise Told(json.dumps(value))

    def judge(make: Callable[[], Any], answers: Sequence[torch.Tensor], shares: Any) -> Any:
        told, last = [], None
        for share in shares:
            last = make()
            for rows in share:
                numbers = torch.tensor(rows, dtype=torch.int64)
                last.add((numbers, *(a[numbers.clamp(min=0)] for a in answers)))
            try:
                last.values(Asking())
            except Told as error:
                told.append(json.loads(str(error)))
        assert last is not None
        return last.values(Gathered(told[:-1])), last.predictions

    return judge
