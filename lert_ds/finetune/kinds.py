"""The three kinds of tasks: the class of model, the loss and the answers of each.

    classification   [CLS] through the pooler → a class
    entities         each token → a tag
    spans            each token → is it the first, is it the last of the answer?

Everything that differs between them in training is in the table at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lert_ds.finetune import classification, entities, spans
from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.features import UNKNOWN, Feature
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.tasks import Kind, Task
from lert_ds.modeling_lert import (
    LertForQuestionAnswering,
    LertForSequenceClassification,
    LertForTokenClassification,
)
from lert_ds.train.trainer import Judge

Logits = dict[str, Tensor]
"""Head to [rows, classes]: the rows are those that have a label to learn."""


class TaskJudge(Judge, Protocol):
    """A judge that can be asked for what it was told."""

    predictions: Any


@dataclass(frozen=True)
class KindOfTask:
    """What a kind of task asks of a model and its batches."""

    model: type[PreTrainedModel]
    head_names: tuple[str, ...]
    """What it asks of a row."""
    encode: Callable[[Sequence[Any], Any, TaskConfig, int], list[Feature]]
    """Examples, tokenizer, settings and the longest row to features."""
    outputs: Callable[[Any, TaskBatch], tuple[Tensor, ...]]
    """A model's output to its logits, one row a feature."""
    heads: Callable[[tuple[Tensor, ...], TaskBatch], Logits]
    """Outputs to logits by head, of the rows that have a label."""
    labels: Callable[[TaskBatch], dict[str, Tensor]]
    """A batch to the labels of these rows, by head."""
    answers: Callable[[Logits, TaskBatch], tuple[Tensor, ...]]
    """Logits by head back to outputs, which are what is judged; rows without a label are 0."""
    judge: Callable[[Task, TaskConfig, Sequence[Any], Sequence[Feature]], TaskJudge]
    """What judges the answers to examples by their features."""


def run_model(model: nn.Module, kind: KindOfTask, batch: TaskBatch) -> tuple[Tensor, ...]:
    """Return a model's logits for a batch, one row a feature."""
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
        return_dict=True,
    )
    return kind.outputs(output, batch)


def cross_entropy(logits: Logits, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sum of cross entropies over heads and rows with a label, and how many rows.

    Of several heads (first and last token) it is their mean, as in BERT.
    """
    total: Tensor | None = None
    count: Tensor | None = None
    for head, rows in logits.items():
        # float32: half precision would round the sums of exponentials.
        found = functional.cross_entropy(
            rows.float(), labels[head], ignore_index=UNKNOWN, reduction="sum"
        )
        total = found if total is None else total + found
        known = (labels[head] != UNKNOWN).sum()
        count = known if count is None else count + known
    assert total is not None
    assert count is not None
    return total, count


def _class_outputs(output: Any, batch: TaskBatch) -> tuple[Tensor, ...]:
    return (output.logits,)


def _class_heads(outputs: tuple[Tensor, ...], batch: TaskBatch) -> Logits:
    return {"label": outputs[0].index_select(0, _known(batch.labels))}


def _class_labels(batch: TaskBatch) -> dict[str, Tensor]:
    return {"label": batch.labels.index_select(0, _known(batch.labels))}


def _class_answers(logits: Logits, batch: TaskBatch) -> tuple[Tensor, ...]:
    return (_spread(logits["label"], batch.labels),)


def _tag_heads(outputs: tuple[Tensor, ...], batch: TaskBatch) -> Logits:
    """Return the logits of the tokens that have a tag, [tokens, tags]."""
    return {"tag": outputs[0].flatten(0, 1).index_select(0, _known(batch.labels))}


def _tag_labels(batch: TaskBatch) -> dict[str, Tensor]:
    return {"tag": batch.labels.flatten().index_select(0, _known(batch.labels))}


def _tag_answers(logits: Logits, batch: TaskBatch) -> tuple[Tensor, ...]:
    whole = _spread(logits["tag"], batch.labels)
    return (whole.view(*batch.labels.shape, whole.shape[-1]),)


def _known(labels: Tensor) -> Tensor:
    """Return the flattened places of what has a label."""
    return (labels != UNKNOWN).flatten().nonzero()[:, 0]


def _spread(rows: Tensor, labels: Tensor) -> Tensor:
    """Return rows at the places of what has a label, [labels, classes]; elsewhere 0."""
    whole = rows.new_zeros(labels.numel(), rows.shape[-1])
    return whole.index_copy(0, _known(labels), rows)


def _span_outputs(output: Any, batch: TaskBatch) -> tuple[Tensor, ...]:
    return without_padding((output.start_logits, output.end_logits), batch)


def without_padding(outputs: tuple[Tensor, ...], batch: TaskBatch) -> tuple[Tensor, ...]:
    """Return logits of places, [rows, length], that leave padding next to no probability."""
    if batch.attention_mask is None:
        return outputs
    padding = ~batch.attention_mask
    return tuple(logits.masked_fill(padding, _NEVER) for logits in outputs)


def _span_heads(outputs: tuple[Tensor, ...], batch: TaskBatch) -> Logits:
    known = _known(batch.labels[:, 0])
    return {"start": outputs[0].index_select(0, known), "end": outputs[1].index_select(0, known)}


def _span_labels(batch: TaskBatch) -> dict[str, Tensor]:
    firsts, lasts = batch.labels.index_select(0, _known(batch.labels[:, 0])).unbind(-1)
    return {"start": firsts, "end": lasts}


def _span_answers(logits: Logits, batch: TaskBatch) -> tuple[Tensor, ...]:
    firsts = batch.labels[:, 0]
    return _spread(logits["start"], firsts), _spread(logits["end"], firsts)


_NEVER = -1e4
"""A logit whose probability is 0, in half precision too."""

KINDS: dict[Kind, KindOfTask] = {
    "classification": KindOfTask(
        LertForSequenceClassification,
        ("label",),
        classification.encode,
        _class_outputs,
        _class_heads,
        _class_labels,
        _class_answers,
        lambda task, settings, examples, features: classification.ClassificationJudge(
            examples, features
        ),
    ),
    "entities": KindOfTask(
        LertForTokenClassification,
        ("tag",),
        entities.encode,
        _class_outputs,
        _tag_heads,
        _tag_labels,
        _tag_answers,
        lambda task, settings, examples, features: entities.EntityJudge(
            examples, features, task.labels
        ),
    ),
    "spans": KindOfTask(
        LertForQuestionAnswering,
        ("start", "end"),
        spans.encode,
        _span_outputs,
        _span_heads,
        _span_labels,
        _span_answers,
        lambda task, settings, examples, features: spans.SpanJudge(
            examples, features, settings.answer_length
        ),
    ),
}
"""Kind to what it asks."""
