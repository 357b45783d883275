"""What a distillation asks of a kind of model and its data: TextBrewer's adaptor, typed.

`PretrainingAdaptor` is that of masked batches through the heads of LERT; `task_adaptor.py` has that
of a fine-tuned model and a task's batches.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch, StepOutput
from lert_ds.pretraining_objective import LertLoss, masked_logits, with_perplexity

Logits = dict[str, Tensor]
"""Head to [rows, classes]; the same rows in student and teacher."""


class Adaptor(Protocol):
    """From models and batches, each kind its own, to what the losses take."""

    def logits(self, model: nn.Module, batch: Any) -> Logits:
        """Run a model and return the logits of its heads."""
        ...

    def labels(self, batch: Any) -> dict[str, Tensor]:
        """Return the labels by head: int64 [rows], below 0 where unknown."""
        ...

    def head_weights(self, step: int) -> dict[str, float]:
        """Return the weight of each head's KD at an optimizer step; what is left out is not asked.

        The heads are the same at every step.
        """
        ...

    def hard_loss(self, logits: Logits, batch: Any, *, step: int, evaluating: bool) -> StepOutput:
        """Return the loss on the labels, and its metrics."""
        ...

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return reduced metrics and what follows from them."""
        ...


class PretrainingAdaptor:
    """Masked words and their tags: the heads `mlm`, and `pos`, `ner`, `dep` with the LIP schedule.

    The KD of a task follows the schedule of its hard loss: a student is asked for a task as much by
    its teacher as by its labels, and MLM comes first in both.
    """

    def __init__(self, loss: LertLoss, task_weights: dict[str, float]) -> None:
        """Take LERT's own loss, and the weight of each task's KD; MLM's is 1."""
        self._loss, self._task_weights = loss, task_weights

    def logits(self, model: nn.Module, batch: Batch) -> Logits:
        """Return the logits at the masked positions, gathered before the decoder."""
        assert isinstance(model, LertForPreTraining)
        return masked_logits(model, batch)

    def labels(self, batch: Batch) -> dict[str, Tensor]:
        """Return the masked tokens and their tags."""
        tags = {
            task: classes.masked_fill(classes == IGNORE_INDEX, -1)
            for task, classes in batch.tags.items()
        }
        return {"mlm": batch.labels, **tags}

    def head_weights(self, step: int) -> dict[str, float]:
        """Return 1 for MLM, and a task's weight times its LIP weight."""
        weights = {
            task: w * self._loss.weight(task, step) for task, w in self._task_weights.items()
        }
        return {"mlm": 1.0, **weights}

    def hard_loss(self, logits: Logits, batch: Batch, *, step: int, evaluating: bool) -> StepOutput:
        """Return LERT's loss."""
        return self._loss(logits, batch, step=step, evaluating=evaluating)

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return `values` and the perplexity."""
        return with_perplexity(values)
