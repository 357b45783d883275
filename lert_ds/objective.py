"""The contract between a training and its trainer: what a batch is and what a step returns."""

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Name to a detached tensor `[..., 2]` of (sum, count).

Pairs are added over micro-batches and ranks and divided once: no average of averages. Several rows
(one a class) give the mean of those ratios whose count is not 0, which is how macro-F1 adds up.
"""


def metric(total: Tensor, count: Tensor) -> Tensor:
    """Return the `[sum, count]` pair of a metric, detached."""
    return torch.stack([total.detach().float(), count.detach().float()])


class AnyBatch(Protocol):
    """What the trainer and the losses between layers know of a micro-batch."""

    @property
    def input_ids(self) -> Tensor:
        """int64 [instances, length]: token ids."""
        ...

    @property
    def attention_mask(self) -> Tensor | None:
        """Bool [instances, length], true at real tokens; None where nothing is padded."""
        ...

    @property
    def token_type_ids(self) -> Tensor | None:
        """int64 [instances, length]; None for zeros."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the batch on `device`."""
        ...


class Batch(NamedTuple):
    """One micro-batch of masked instances; a NamedTuple, which ZeRO-3's hooks can walk."""

    input_ids: Tensor
    """int64 [instances, length]: token ids, already masked."""
    attention_mask: Tensor | None
    """bool [instances, length], true at real tokens; None where nothing is padded."""
    masked_positions: Tensor
    """int64 [masked]: places to predict, as indices into the flattened [instances * length]."""
    labels: Tensor
    """int64 [masked]: the token that stood there."""
    tags: dict[str, Tensor]
    """Task to int64 [masked]: class of the word there, or IGNORE_INDEX."""
    document_ends: Tensor | None = None
    """int32 [documents], where documents must not see each other: the end of each in the flattened
    [instances * length], in order, that of an instance's padding too; the last one is repeated so
    that few sizes occur. None where all tokens of an instance may see each other."""

    @property
    def token_type_ids(self) -> None:
        """None: an instance is one text."""
        return

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            input_ids=move(self.input_ids),
            attention_mask=None if self.attention_mask is None else move(self.attention_mask),
            masked_positions=move(self.masked_positions),
            labels=move(self.labels),
            tags={task: move(classes) for task, classes in self.tags.items()},
            document_ends=None if self.document_ends is None else move(self.document_ends),
        )


class StepOutput(NamedTuple):
    """What an objective returns for one micro-batch."""

    loss: Tensor
    """Scalar to differentiate: the mean over this micro-batch."""
    metrics: Metrics
    """Detached `[sum, count]` pairs."""
    answers: tuple[Tensor, ...] = ()
    """In evaluation, what has to be judged together at the end, such as answers to questions that
    run over several instances; see `Judge` in `lert_ds.train.trainer`."""


class Objective(Protocol):
    """An `nn.Module` that the trainer can train.

    `step` (the optimizer step, from 0) is an argument because task weights depend on it: the module
    keeps no counter and so resumes right.
    """

    def forward(self, batch: AnyBatch, *, step: int) -> StepOutput:
        """Return the loss and the metrics of one micro-batch."""
        ...
