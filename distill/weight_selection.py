"""First weights out of a larger model: which of its layers and units a smaller one takes.

Weight selection, as in Xu et al. 2023, "Initializing Models with Larger Ones", arXiv 2311.18823:
layers by a map, units evenly spaced, and the same hidden units in every matrix that reads or writes
the residual stream, so that what one layer writes is what the next one reads. Attention heads are
taken whole: a head is a function of its own, half of two heads is none.

A matrix that loses inputs would give smaller values. We scale it by √(inputs before / inputs left),
which keeps their variance where the terms of the sum are uncorrelated (as in He et al. 2015, arXiv
1502.01852, section 2.2). The embeddings are scaled alike: the word embeddings are the MLM decoder,
which reads the hidden state, and the LayerNorm after the three tables cancels their common factor.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import LertForPreTraining


@torch.no_grad()
def select_weights(
    student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int]
) -> tuple[str, ...]:
    """Overwrite the weights of `student` with a copy of those chosen of `teacher`.

    Args:
        student: In no dimension larger than what it takes; every layer of the configuration's
            number of heads and neurons. With equal shapes and all layers it is the teacher.
        teacher: Of the same class. Whole weights on any device, of any precision; pruned layers may
            be among them.
        layers: The layer of the teacher for each layer of the student, counted from 1.

    Returns:
        The tasks whose tags the teacher does not have: their heads are left as they were.
    """
    ours, theirs = student.config, teacher.config
    assert len(layers) == ours.num_hidden_layers, (layers, ours.num_hidden_layers)
    assert ours.vocab_size == theirs.vocab_size, (ours.vocab_size, theirs.vocab_size)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    hidden = evenly_spaced(ours.hidden_size, theirs.hidden_size)
    words = torch.arange(ours.vocab_size)

    tables, source_tables = student.bert.embeddings, teacher.bert.embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(tables, name)
        _take(table, getattr(source_tables, name), torch.arange(len(table.weight)), hidden)
    _take(tables.LayerNorm, source_tables.LayerNorm, hidden)

    for layer, number in zip(student.bert.encoder.layer, layers, strict=True):
        source = teacher.bert.encoder.layer[number - 1]
        heads = head_units(ours, theirs, theirs.heads_of(number - 1))
        neurons = evenly_spaced(ours.intermediate_size, theirs.intermediate_size_of(number - 1))
        attention, source_attention = layer.attention, source.attention
        for name in ("query", "key", "value"):
            _take(
                getattr(attention.self, name), getattr(source_attention.self, name), heads, hidden
            )
        _take(attention.output.dense, source_attention.output.dense, hidden, heads)
        _take(attention.output.LayerNorm, source_attention.output.LayerNorm, hidden)
        _take(layer.intermediate.dense, source.intermediate.dense, neurons, hidden)
        _take(layer.output.dense, source.output.dense, hidden, neurons)
        _take(layer.output.LayerNorm, source.output.LayerNorm, hidden)

    if not isinstance(student, LertForPreTraining):
        _select_task_heads(student, teacher, hidden)
        return ()
    assert isinstance(teacher, LertForPreTraining)
    predictions, source_predictions = student.cls.predictions, teacher.cls.predictions
    transform, source_transform = predictions.transform, source_predictions.transform
    _take(transform.dense, source_transform.dense, hidden, hidden)
    _take(transform.LayerNorm, source_transform.LayerNorm, hidden)
    _take(predictions.decoder, source_predictions.decoder, words, hidden)
    our_tags, their_tags = ours.tag_sets or {}, theirs.tag_sets or {}
    fresh = []
    for task in ours.tasks:
        tags = our_tags[task]
        if their_tags.get(task) == tags:
            _take(student.tag_head(task), teacher.tag_head(task), torch.arange(len(tags)), hidden)
        else:
            fresh.append(task)
    return tuple(fresh)


def _select_task_heads(student: PreTrainedModel, teacher: PreTrainedModel, hidden: Tensor) -> None:
    if student.bert.pooler is not None:
        _take(student.bert.pooler.dense, teacher.bert.pooler.dense, hidden, hidden)
    for name in ("classifier", "qa_outputs"):
        if (head := getattr(student, name, None)) is not None:
            _take(head, getattr(teacher, name), torch.arange(head.out_features), hidden)


def evenly_spaced(count: int, total: int) -> Tensor:
    """Return `count` of the numbers 0 to `total` - 1, int64 and rising, as far apart as may be."""
    assert 0 < count <= total, (count, total)
    return torch.arange(count) * total // count


def head_units(ours: LertConfig, theirs: LertConfig, their_heads: int) -> Tensor:
    """Return which units of a layer's queries, keys and values are taken, int64 [all heads' size].

    Args:
        ours: Of the student: evenly spaced heads are taken, and evenly spaced units inside them.
        theirs: Of the teacher.
        their_heads: How many heads the teacher has left in this layer.
    """
    size = theirs.hidden_size // theirs.num_attention_heads
    heads = evenly_spaced(ours.num_attention_heads, their_heads)
    units = evenly_spaced(ours.hidden_size // ours.num_attention_heads, size)
    taken: Tensor = heads[:, None] * size + units
    return taken.flatten()


def _take(
    target: nn.Module, source: nn.Module, outputs: Tensor, inputs: Tensor | None = None
) -> None:
    """Copy rows `outputs` and columns `inputs` of `source`, a table, a matrix or a LayerNorm."""
    for name, parameter in target.named_parameters():
        values = source.get_parameter(name).to(parameter)[outputs]
        if inputs is not None and values.dim() == 2:  # no bias
            values = values[:, inputs] * math.sqrt(values.shape[1] / len(inputs))
        parameter.copy_(values)
