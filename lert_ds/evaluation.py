"""What a model reaches on held-out batches, and evaluation mode for a while."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
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


@torch.no_grad()
def evaluate(
    model: LertForPreTraining, batches: Iterable[Batch], tag_sets: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return the losses, accuracies and macro-F1 of a model's heads: `mlm/loss`, `pos/accuracy`, ….

    All processes must call it, each with its own batches.

    Args:
        model: On the device to compute on; its mode stays.
        batches: Held out.
        tag_sets: Those of the corpus; a task counts where the model has a head of these very tags.
    """
    loss = LertLoss(LipConfig(tasks=shared_tasks(model.config, tag_sets)), 1)
    sums = MetricSums()
    with evaluating(model):
        for batch in batches:
            here = batch.to(model.device)
            logits = masked_logits(model, here)
            sums.add(loss(logits, here, step=0, evaluating=True).metrics)
    return {
        name: value
        for name, value in sums.reduce().items()
        if name != "loss" and not name.endswith("/weight")
    }
