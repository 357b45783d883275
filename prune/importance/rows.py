"""What a batch asks of a model: rows of logits, their labels, and the example that each is of.

    masked text    a row a masked position, for MLM and each linguistic task
    a task         a row a sentence, a token, or a question's window, by the kind of task

Scores and the choice of layers see rows alone, so they work for both.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.features import UNKNOWN
from lert_ds.finetune.objective import TaskLoss
from lert_ds.finetune.tasks import Kind
from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch, Metrics, metric
from lert_ds.pretraining_objective import masked_logits


class Rows(NamedTuple):
    """What a model answers a batch, by head; the heads may have different rows."""

    logits: dict[str, Tensor]
    """Head to [rows, classes]."""
    labels: dict[str, Tensor]
    """Head to int64 [rows], UNKNOWN where there is none."""
    examples: Tensor
    """int64 [rows]: the example of the batch that a row is of."""


Ask = Callable[[PreTrainedModel, Any], Rows]
"""A model and a batch to its rows."""


def masked_rows(tasks: Sequence[str] = ()) -> Ask:
    """Return what asks for masked words and for their tags of `tasks`."""

    def ask(model: PreTrainedModel, batch: Batch) -> Rows:
        assert isinstance(model, LertForPreTraining)
        logits = masked_logits(model, batch)
        labels = {"mlm": batch.labels}
        for task in tasks:
            # A head may have tags that a corpus lacks: fisher draws them.
            tags = batch.tags.get(task, torch.full_like(batch.labels, IGNORE_INDEX))
            labels[task] = tags.masked_fill(tags == IGNORE_INDEX, UNKNOWN)
        examples = batch.masked_positions // batch.input_ids.shape[1]
        return Rows({name: logits[name] for name in labels}, labels, examples)

    return ask


def task_rows(kind: Kind) -> Ask:
    """Return what asks for a task's labels."""
    loss = TaskLoss(kind)

    def ask(model: PreTrainedModel, batch: TaskBatch) -> Rows:
        known = batch.labels != UNKNOWN
        if kind == "entities":
            examples = known.nonzero()[:, 0]
        else:
            examples = torch.arange(len(known), device=known.device)
            examples = examples[known.flatten(1).all(1) if known.dim() > 1 else known]
        return Rows(loss.logits(model, batch), loss.labels(batch), examples)

    return ask


def mean_loss(rows: Rows) -> Tensor:
    """Return the mean cross entropy over the labels of a batch, added over heads."""
    total: Tensor | None = None
    for pairs in _sums(rows).values():
        mean = pairs[0] / pairs[1].clamp(min=1)
        total = mean if total is None else total + mean
    assert total is not None
    return total


def losses(rows: Rows) -> Metrics:
    """Return the loss of each head as a `[sum, count]` pair."""
    return {name: metric(*pairs) for name, pairs in _sums(rows).items()}


def _sums(rows: Rows) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (
            # float32: half precision would round the sums of exponentials.
            functional.cross_entropy(
                logits.float(), rows.labels[name], ignore_index=UNKNOWN, reduction="sum"
            ),
            (rows.labels[name] != UNKNOWN).sum(),
        )
        for name, logits in rows.logits.items()
    }
