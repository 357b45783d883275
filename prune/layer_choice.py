"""Which whole layers to drop: those that a list names, or those that change the least.

block_influence   1 - the mean cosine of a layer's hidden states in and out, all layers ranked at
                  once: ShortGPT, Men et al. 2024, arXiv 2403.03853. One pass.
hidden_change     1 - the mean cosine of the last hidden states with and without the layer.
loss_change       what the losses of all heads gain when the layer is skipped.

The last two drop one layer at a time and measure the others anew without it, as in SLEB, Song et
al. 2024, arXiv 2402.09025: of two layers that do the same, either can go, not both. For d of n
layers that takes d · (2n - d + 1) / 2 passes.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lert_ds.errors import ConfigError
from lert_ds.evaluation import evaluating
from lert_ds.labels import TASKS
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import AnyBatch, Batch, Metrics, metric
from lert_ds.train.metrics import MetricSums
from prune.importance.rows import Ask, losses, masked_rows

Measure = Literal["block_influence", "hidden_change", "loss_change"]
"""How much a layer matters."""
MEASURES: tuple[Measure, ...] = get_args(Measure)


def layers_without(dropped: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the layers that stay, from 0, of a model of `count`: what `Cut.layers` takes.

    Args:
        dropped: The layers to drop as the user counts them, from 1, in any order.
        count: How many there are.

    Raises:
        ConfigError: there is no such layer, one is named twice, or none would be left.
    """
    for number in dropped:
        if not 1 <= number <= count:
            raise ConfigError(
                f"drop_layers names layer {number}, but the model has {count}; "
                f"name layers from 1 to {count}"
            )
    if len(set(dropped)) < len(dropped):
        raise ConfigError(f"drop_layers = {list(dropped)}: name each layer once")
    check_count(len(dropped), count)
    return tuple(number for number in range(count) if number + 1 not in dropped)


def choose_layers(
    model: PreTrainedModel, batches: Sequence[Any], drop: int, by: Measure, ask: Ask | None = None
) -> tuple[int, ...]:
    """Return the layers that stay, from 0, when the `drop` layers that matter least go.

    All processes must call it, each with its own batches; they get the same answer.

    Args:
        model: Of a class of `lert_ds.modeling_lert`; unchanged.
        batches: Text of this process, on any device; read once a pass.
        drop: How many layers go, 0 or more.
        by: How much a layer matters.
        ask: What a batch asks of the model; by default masked words and the tags that there are.

    Raises:
        ConfigError: no layer would be left, there is no text, or `loss_change` is asked of a model
            without heads.
    """
    count = model.config.num_hidden_layers
    gone = drop_order(model, batches, drop, by, ask)
    return tuple(number for number in range(count) if number not in gone)


def drop_order(
    model: PreTrainedModel, batches: Sequence[Any], drop: int, by: Measure, ask: Ask | None = None
) -> list[int]:
    """Return the `drop` layers that matter least, from 0, those that go first first.

    All processes must call it, and arguments and errors are as in `choose_layers`.
    """
    check_count(drop, model.config.num_hidden_layers)
    if by == "block_influence":
        scores = measure_layers(model, batches, by, ask=ask) if drop else {}
        return sorted(scores, key=scores.__getitem__)[:drop]
    gone: list[int] = []
    for _ in range(drop):
        scores = measure_layers(model, batches, by, gone, ask)
        gone.append(min(scores, key=scores.__getitem__))
    return gone


def check_count(drop: int, count: int) -> None:
    """Refuse to drop `drop` layers of `count` where none would be left.

    Raises:
        ConfigError: says how many can go.
    """
    if drop >= count:
        raise ConfigError(f"drop_layers drops {drop} layers of {count}; at most {count - 1} can go")


@torch.no_grad()
def measure_layers(
    model: PreTrainedModel,
    batches: Sequence[Any],
    by: Measure,
    gone: Collection[int] = (),
    ask: Ask | None = None,
) -> dict[int, float]:
    """Return how much each layer that is not `gone` matters: its number, from 0, to its score.

    The sums run over all processes; padding does not count.

    Args:
        model: As in `choose_layers`.
        batches: The same.
        by: The same.
        gone: Layers to leave out of every pass; the whole model stays what is compared with.
        ask: As in `choose_layers`.

    Raises:
        ConfigError: as `choose_layers` does.
    """
    present = [number for number in range(model.config.num_hidden_layers) if number not in gone]
    if by == "loss_change" and ask is None and not isinstance(model, LertForPreTraining):
        raise ConfigError(
            "loss_change: this model has no heads of pre-training to take a loss of; "
            "measure layers by hidden_change"
        )
    sums = MetricSums()
    with evaluating(model):
        for batch in batches:
            here = batch.to(model.device)
            if by == "block_influence":
                sums.add(_influences(model, here, gone))
            elif by == "hidden_change":
                sums.add(_hidden_changes(model, here, gone, present))
            else:
                sums.add(_losses(model, here, gone, present, ask or _masked(model, here)))
    values = sums.reduce()
    if not values:
        raise ConfigError(
            f"{by}: there is no text to measure the layers on; name a corpus that has some"
        )
    if by != "loss_change":
        return {number: values[str(number)] for number in present}
    whole = sum(value for name, value in values.items() if name.startswith("whole "))
    return {
        number: sum(v for name, v in values.items() if name.startswith(f"{number} ")) - whole
        for number in present
    }


def _influences(model: PreTrainedModel, batch: AnyBatch, gone: Collection[int]) -> Metrics:
    with _without(model, gone) as layers:
        states = model.base_model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.token_type_ids,
            output_hidden_states=True,
        ).hidden_states
    pairs = zip(layers, states[:-1], states[1:], strict=True)
    return {str(number): _distance(before, after, batch) for number, before, after in pairs}


def _hidden_changes(
    model: PreTrainedModel, batch: AnyBatch, gone: Collection[int], present: Sequence[int]
) -> Metrics:
    def last_state(skipped: Collection[int]) -> Tensor:
        with _without(model, skipped):
            encoded = model.base_model(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                token_type_ids=batch.token_type_ids,
            )
        state: Tensor = encoded.last_hidden_state
        return state

    whole = last_state(())
    return {str(number): _distance(whole, last_state({*gone, number}), batch) for number in present}


def _masked(model: PreTrainedModel, batch: Batch) -> Ask:
    """Return what asks for masked words and those of their tags that model and batch have."""
    tasks = (task for task in TASKS if task in model.config.tasks and task in batch.tags)
    return masked_rows(tuple(tasks))


def _losses(
    model: PreTrainedModel, batch: Any, gone: Collection[int], present: Sequence[int], ask: Ask
) -> Metrics:
    def losses_without(skipped: Collection[int], name: str) -> Metrics:
        with _without(model, skipped):
            found = losses(ask(model, batch))
        return {f"{name} {head}": pair for head, pair in found.items()}

    found = losses_without((), "whole")
    for number in present:
        found |= losses_without({*gone, number}, str(number))
    return found


def _distance(one: Tensor, other: Tensor, batch: AnyBatch) -> Tensor:
    """Return 1 - cosine of hidden states, [instances, length, hidden], summed and counted."""
    distances = 1 - functional.cosine_similarity(one.float(), other.float(), dim=-1)
    if batch.attention_mask is not None:
        distances = distances[batch.attention_mask]
    return metric(distances.sum(), distances.new_tensor(distances.numel()))


@contextlib.contextmanager
def _without(model: PreTrainedModel, gone: Collection[int]) -> Iterator[list[int]]:
    """Skip the layers `gone`, and give the numbers of the others."""
    encoder = model.base_model.encoder
    whole = encoder.layer
    numbers = [number for number in range(len(whole)) if number not in gone]
    encoder.layer = nn.ModuleList(whole[number] for number in numbers)
    try:
        yield numbers
    finally:
        encoder.layer = whole
