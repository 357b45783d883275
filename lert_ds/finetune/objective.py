"""Fine-tuning as an objective: a task's batch, through the model, to a loss and answers."""

import torch
from torch import Tensor, nn

from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.kinds import KINDS, Logits, cross_entropy, run_model
from lert_ds.finetune.tasks import Kind
from lert_ds.objective import Metrics, StepOutput, metric


class TaskLoss:
    """The loss on a task's labels, and its metrics: `loss`, `accuracy` of the rows with a label."""

    def __init__(self, kind: Kind) -> None:
        """Take the kind of task."""
        self.kind = KINDS[kind]

    def outputs(self, model: nn.Module, batch: TaskBatch) -> tuple[Tensor, ...]:
        """Return a model's logits, one row a feature."""
        return run_model(model, self.kind, batch)

    def heads(self, outputs: tuple[Tensor, ...], batch: TaskBatch) -> tuple[Logits, Logits]:
        """Return logits by head, [rows with a label, classes], and the labels of these rows."""
        return self.kind.heads(outputs, batch)

    def __call__(
        self, outputs: tuple[Tensor, ...], batch: TaskBatch, *, evaluating: bool
    ) -> StepOutput:
        """Return the mean loss over the labels of a micro-batch, and what there is to answer.

        A batch without a label adds exactly 0, and its heads still take part in the backward pass.
        """
        logits, labels = self.heads(outputs, batch)
        total, count = cross_entropy(logits, labels)
        loss = total / count.clamp(min=1)
        metrics: Metrics = {"loss": metric(total, count)}
        if len(logits) == 1:
            ((head, rows),) = logits.items()
            hits = (rows.detach().argmax(-1) == labels[head]).sum()
            metrics["accuracy"] = metric(hits, count)
        answers = (batch.features, *(o.detach() for o in outputs)) if evaluating else ()
        return StepOutput(loss, metrics, answers)


class FinetuneObjective(nn.Module):
    """Wraps the model that it trains; `Objective` in `lert_ds.objective` is its contract."""

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        """Train `model`, of the class that `KINDS` names for the kind of task."""
        super().__init__()
        self.model = model
        self.task_loss = TaskLoss(kind)

    def forward(self, batch: TaskBatch, *, step: int) -> StepOutput:
        """Return the loss and the metrics of one micro-batch at optimizer step `step`."""
        outputs = self.task_loss.outputs(self.model, batch)
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            return self.task_loss(outputs, batch, evaluating=not self.training)

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return `values`."""
        return values
