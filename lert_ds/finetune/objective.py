"""Fine-tuning as an objective: a task's batch, through the model, to a loss and answers."""

import torch
from torch import Tensor, nn

from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.kinds import KINDS, Logits, cross_entropy, run_model
from lert_ds.finetune.tasks import Kind
from lert_ds.objective import Metrics, StepOutput, metric


class TaskLoss:
    """The loss on a task's labels, and its metrics: `loss`, and `accuracy` of rows with a class."""

    def __init__(self, kind: Kind) -> None:
        """Take the kind of task."""
        self._kind = KINDS[kind]
        self.head_names = self._kind.head_names

    def logits(self, model: nn.Module, batch: TaskBatch) -> Logits:
        """Return a model's logits by head, [rows with a label, classes]."""
        return self._kind.heads(run_model(model, self._kind, batch), batch)

    def labels(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return the labels of these rows, by head."""
        return self._kind.labels(batch)

    def __call__(self, logits: Logits, batch: TaskBatch, *, evaluating: bool) -> StepOutput:
        """Return the mean loss over the labels of a micro-batch, and what there is to judge.

        A batch without a label adds exactly 0, and its heads still take part in the backward pass.
        """
        labels = self.labels(batch)
        total, count = cross_entropy(logits, labels)
        loss = total / count.clamp(min=1)
        metrics: Metrics = {"loss": metric(total, count)}
        if len(logits) == 1:
            ((head, rows),) = logits.items()
            hits = (rows.detach().argmax(-1) == labels[head]).sum()
            metrics["accuracy"] = metric(hits, count)
        if not evaluating:
            return StepOutput(loss, metrics)
        answers = self._kind.answers({h: rows.detach() for h, rows in logits.items()}, batch)
        return StepOutput(loss, metrics, (batch.features, *answers))


class FinetuneObjective(nn.Module):
    """Wraps the model that it trains; `Objective` in `lert_ds.objective` is its contract."""

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        """Train `model`, of the class that `KINDS` names for the kind of task."""
        super().__init__()
        self.model = model
        self.task_loss = TaskLoss(kind)

    def forward(self, batch: TaskBatch, *, step: int) -> StepOutput:
        """Return the loss and the metrics of one micro-batch at optimizer step `step`."""
        logits = self.task_loss.logits(self.model, batch)
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            return self.task_loss(logits, batch, evaluating=not self.training)

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return `values`."""
        return values
