"""What a distillation asks of a fine-tuned model and a task's batches."""

from torch import Tensor, nn

from distill.adaptor import Logits
from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.objective import TaskLoss
from lert_ds.objective import StepOutput


class TaskAdaptor:
    """A task's heads: `label`, or `tag`, or `start` and `end`, half each; an `Adaptor`."""

    def __init__(self, loss: TaskLoss) -> None:
        """Take the task's own loss."""
        self._loss = loss

    def logits(self, model: nn.Module, batch: TaskBatch) -> Logits:
        """Return the logits of the rows that have a label."""
        return self._loss.logits(model, batch)

    def labels(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return the labels of these rows."""
        return self._loss.labels(batch)

    def head_weights(self, step: int) -> dict[str, float]:
        """Return 1 over the heads, as the loss on the labels is their mean."""
        names = self._loss.head_names
        return dict.fromkeys(names, 1 / len(names))

    def hard_loss(
        self, logits: Logits, batch: TaskBatch, *, step: int, evaluating: bool
    ) -> StepOutput:
        """Return the task's own loss."""
        return self._loss(logits, batch, evaluating=evaluating)

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return `values`."""
        return values
