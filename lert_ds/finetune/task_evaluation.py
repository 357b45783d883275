"""What a model reaches on a split of a task: any model that gives logits for a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lert_ds.errors import ModelError
from lert_ds.evaluation import evaluating
from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.kinds import KINDS, run_model
from lert_ds.finetune.task_data import Part, TaskData
from lert_ds.finetune.tasks import Task
from lert_ds.train.peers import Peers

Run = Callable[[TaskBatch], tuple[Tensor, ...]]
"""A batch to its logits, one row a feature."""


def evaluate(run: Run, data: TaskData, part: Part) -> tuple[dict[str, float], Any]:
    """Return the metrics of a split and the predictions, by one process alone."""
    judge = data.judge(part)
    for batch in data.evaluation(part):
        judge.add((batch.features, *run(batch)))
    return judge.values(_ALONE), judge.predictions


@torch.inference_mode()
def evaluate_model(model: nn.Module, data: TaskData, part: Part) -> tuple[dict[str, float], Any]:
    """Return the metrics of a split and the predictions of a PyTorch model; its mode stays."""
    kind = KINDS[data.task.kind]
    device = next(model.parameters()).device
    with evaluating(model):
        return evaluate(lambda batch: run_model(model, kind, batch.to(device)), data, part)


def refuse_other_labels(source: str, names: dict[int, str] | None, task: Task) -> None:
    """Hold the labels of a fine-tuned model to those of a task.

    Raises:
        ModelError: it was fine-tuned for another task.
    """
    wanted = list(task.labels)
    if task.kind == "spans":
        return
    given: Sequence[str] = [names[key] for key in sorted(names)] if names else ()
    if list(given) != wanted:
        raise ModelError(
            f"{source}: its classes are {', '.join(given) or 'none'}, those of {task.title} "
            f"{', '.join(wanted)}; name a model that was fine-tuned for it"
        )


class _Alone:
    """Stands for the processes where there is one."""

    def gather(self, value: Any) -> list[Any]:
        return [value]


_ALONE: Peers = _Alone()  # type: ignore[assignment]
