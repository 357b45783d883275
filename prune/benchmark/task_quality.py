"""What a benchmark's columns reach on a task: the same examples for all, each in its own pieces.

    ocnli  dev 2,950 examples   →   teacher 78.1   pruned 77.0   pruned int8 76.8

Models by the class that the task asks for, graphs by ONNX Runtime; batches, padding and judges are
those of `lert-ds finetune`, so that a figure here is the figure there.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from lert_ds.edge.edge_model import EdgeModel
from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import Part, TaskData, find_files, open_task
from lert_ds.finetune.task_evaluation import Run, evaluate, evaluate_model, refuse_other_labels
from lert_ds.finetune.tasks import Kind, find_task
from prune.benchmark import models as benchmark_models
from prune.benchmark.columns import Column
from prune.benchmark.worker import Runner

Scores = dict[str, dict[str, float]]
"""Split to its metrics, from 0 to 1."""


class TaskQuality:
    """The splits of a task that each column is evaluated on."""

    def __init__(self, settings: TaskConfig) -> None:
        """Take a task.

        Raises:
            ConfigError: there is no such task.
        """
        self._settings = settings
        self.task = find_task(settings.name)
        self._record: dict[str, Any] = {
            "name": self.task.name, "title": self.task.title, "metrics": list(self.task.metrics),
        }  # fmt: skip

    def check(self, column: Column) -> None:
        """Pass where a column can be evaluated.

        Raises:
            UserError: the task's files are not there, or the model has other classes.
        """
        refuse_other_labels(column.source, column.config.id2label, self.task)
        find_files(self._settings, self.task)

    def evaluate(self, column: Column) -> Scores:
        """Return what a column reaches on dev and, where there is one, on test.

        Raises:
            UserError: something in the files is wrong.
        """
        data = open_task(self._settings, column.folder, column.config, to_train=False)
        self._record["files"] = data.files
        self._record["examples"] = {split: len(part.examples) for split, part in _parts(data)}
        if column.graph is not None:
            run = graph_run(EdgeModel(column.folder, graph=column.graph).run, self.task.kind)
            return {split: evaluate(run, data, part)[0] for split, part in _parts(data)}
        model = benchmark_models.load(column.folder, column.precision, column.head)
        return {split: evaluate_model(model, data, part)[0] for split, part in _parts(data)}

    def record(self) -> dict[str, Any]:
        """Return what the record of a benchmark says of the task, once a column is evaluated."""
        return dict(self._record)


def _parts(data: TaskData) -> Iterator[tuple[str, Part]]:
    yield "dev", data.dev
    if data.test is not None:
        yield "test", data.test


def graph_run(run: Runner, kind: Kind) -> Run:
    """Return what takes a task's batch through a graph.

    Args:
        run: Inputs to outputs by name: `logits`, or `start_logits` and `end_logits`.
        kind: Of the task.
    """

    def answer(batch: TaskBatch) -> tuple[torch.Tensor, ...]:
        ids, mask = batch.input_ids, batch.attention_mask
        outputs = run(
            {
                "input_ids": ids.numpy(),
                "attention_mask": (torch.ones_like(ids) if mask is None else mask.long()).numpy(),
                "token_type_ids": batch.token_type_ids.numpy(),
            }
        )
        tensors = {name: torch.from_numpy(array) for name, array in outputs.items()}
        return KINDS[kind].outputs(SimpleNamespace(**tensors), batch)

    return answer
