"""What a model reaches on held-out batches, and evaluation mode for a while."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch, Metrics, metric
from lert_ds.pretraining_objective import LertLoss, LipConfig, masked_logits
from lert_ds.train.metrics import MetricSums


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Leave dropout out inside; afterwards every part of `models` has the mode it had."""
    modes = {part: part.training for model in models for part in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def shared_tasks(config: LertConfig, tag_sets: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the tasks whose heads in a model have just the tags, in their order, of a corpus."""
    ours = config.tag_sets or {}
    return tuple(task for task in config.tasks if list(tag_sets.get(task, ())) == list(ours[task]))


class Missing(NamedTuple):
    """What a masked word counts for that a vocabulary has no piece for."""

    unknown_id: int
    """Of [UNK], which stands for it."""
    loss: float
    """In nats: the logarithm of the size of the whole vocabulary, what saying nothing costs."""


@torch.no_grad()
def evaluate(
    model: LertForPreTraining,
    batches: Iterable[Batch],
    tag_sets: Mapping[str, Sequence[str]],
    missing: Missing | None = None,
) -> dict[str, float]:
    """Return the losses, accuracies and macro-F1 of a model's heads: `mlm/loss`, `pos/accuracy`, ….

    All processes must call it, each with its own batches.

    Args:
        model: On the device to compute on; its mode stays.
        batches: Held out.
        tag_sets: Those of the corpus; a task counts where the model has a head of these very tags.
        missing: Where models of several vocabularies are compared: a masked [UNK] is then no hit,
            and costs a loss. Without it a smaller vocabulary looks better: [UNK] is easy to guess.
    """
    loss = LertLoss(LipConfig(tasks=shared_tasks(model.config, tag_sets)), 1)
    sums = MetricSums()
    with evaluating(model):
        for batch in batches:
            here = batch.to(model.device)
            logits = masked_logits(model, here)
            metrics = loss(logits, here, step=0, evaluating=True).metrics
            if missing is not None:
                metrics |= _charged(logits["mlm"], here.labels, missing)
            sums.add(metrics)
    return {
        name: value
        for name, value in sums.reduce().items()
        if name != "loss" and not name.endswith("/weight")
    }


def _charged(logits: Tensor, labels: Tensor, missing: Missing) -> Metrics:
    known = labels != missing.unknown_id
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    hits = (logits.argmax(-1) == labels) & known
    count = known.new_tensor(len(known), dtype=torch.float32)
    return {
        "mlm/loss": metric(losses.where(known, missing.loss).sum(), count),
        "mlm/accuracy": metric(hits.sum(), count),
    }
