"""Pruning in iterations: score, cut, repair, and score what is left of the model anew.

    n_iters = 4, 12 → 6 heads a layer, pruning_order=None:   12 → 10.5 → 9 → 7.5 → 6, neurons alike
    pruning_order="head-first":      heads, neurons, heads, neurons, …: 2 · n_iters steps

TextPruner's loop (`TransformerPruner.iterative_pruning`), step for step and count for count. It
sets units to zero and scores the whole model on; here they are cut out, which scores the same at
the cost of the smaller model, and what is left may be refitted before it is scored. As there, a
unit that is gone stays gone, and every cut is made in the original's weights.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lert_ds.configuration_lert import LertConfig
from lert_ds.model_surgery import Cut, cut, expand
from prune.importance.scores import Scores
from prune.masks import PruningConfig, Totals, check, choose

log = logging.getLogger(__name__)


def prune_iteratively(
    model: PreTrainedModel,
    config: PruningConfig,
    score: Callable[[PreTrainedModel], Scores],
    *,
    layers: Sequence[int] | None = None,
    expanded: bool = False,
    refit: Callable[[PreTrainedModel, Cut], None] | None = None,
) -> Cut:
    """Return what stays of `model`, which stays as it is.

    All processes must call it where `score` or `refit` adds up over them; they get the same answer.

    Args:
        model: Whole weights; pruned layers may be among them.
        config: Of pruning_method=iterative. Without a target nothing is scored.
        score: Takes what is left of the model and returns its scores.
        layers: The layers that stay, from 0; the others are dropped beforehand.
        expanded: `score` wants a model of the shape that `model` has without the dropped layers,
            with zeros for what is cut, as TextPruner's scores do.
        refit: Repairs what is left of the model in place, before it is scored; it also gets the cut
            in terms of `model`. Not called while nothing is cut.

    Returns:
        In terms of `model`; masks keep all of the dropped layers, as `cut` has no use for them.

    Raises:
        ConfigError: `config` does not fit the model.
        ModelError: scores are not finite numbers.
    """
    assert config.pruning_method == "iterative", config.pruning_method
    totals = check(config, model.config, layers)
    base = model if layers is None else cut(model, Cut(layers=tuple(layers)))
    heads, neurons = _all_units(base.config)
    steps = list(_steps(config, Totals(_count(heads), _count(neurons)), totals))
    here = Cut(heads=_as_rows(heads), neurons=neurons)
    for number, wanted in enumerate(steps):
        smaller = cut(base, here)
        whole = _in_terms_of(model.config, here, layers)
        if refit is not None and (number or layers is not None):
            refit(smaller, whole)
        scores = score(expand(smaller, base, here) if expanded else smaller)
        heads = _keep(
            heads,
            scores.heads,
            wanted.heads,
            even=config.head_even_masking,
            minimum=config.minimum_heads,
        )
        neurons = _keep(
            neurons,
            scores.neurons,
            wanted.neurons,
            even=config.ffn_even_masking,
            multiple_of=config.multiple_of,
            minimum=config.minimum_neurons,
        )
        here = Cut(heads=_as_rows(heads), neurons=neurons)
        log.info(
            "iteration %d of %d: heads %s, neurons %s",
            number + 1,
            len(steps),
            [int(mask.sum()) for mask in heads],
            [int(mask.sum()) for mask in neurons],
        )
    found = _in_terms_of(model.config, here, layers)
    return Cut(
        heads=None if totals.heads is None else found.heads,
        neurons=None if totals.neurons is None else found.neurons,
        layers=None if layers is None else tuple(layers),
    )


def _steps(config: PruningConfig, present: Totals, totals: Totals) -> Iterator[Totals]:
    """Yield how many heads and neurons stay after each step; None where none goes in it."""
    assert present.heads is not None
    assert present.neurons is not None
    heads = _descend(present.heads, totals.heads, config.n_iters)
    neurons = _descend(present.neurons, totals.neurons, config.n_iters)
    for head_total, neuron_total in zip(heads, neurons, strict=True):
        turns = {
            None: (Totals(head_total, neuron_total),),
            "head-first": (Totals(head_total, None), Totals(None, neuron_total)),
            "ffn-first": (Totals(None, neuron_total), Totals(head_total, None)),
        }[config.pruning_order]
        yield from (turn for turn in turns if turn != (None, None))


def _descend(present: int, target: int | None, iterations: int) -> list[int | None]:
    """Return the totals after each iteration, None where it is that before: first steps are larger.

    They are TextPruner's.
    """
    gone = 0 if target is None else present - target
    each, more = divmod(gone, iterations)
    totals: list[int | None] = []
    for number in range(iterations):
        step = each + (number < more)
        present -= step
        totals.append(present if step else None)
    return totals


def _keep(
    masks: tuple[Tensor, ...],
    scores: Sequence[Tensor],
    total: int | None,
    *,
    even: bool,
    multiple_of: int = 1,
    minimum: int,
) -> tuple[Tensor, ...]:
    """Return the masks of the best `total` of the units in `masks`, bool [units] a layer.

    Args:
        masks: The units that are left.
        scores: Of the units that are left, or of all.
        total: None leaves the masks as they are.
        even: See `choose`.
        multiple_of: The same.
        minimum: The same.
    """
    if total is None:
        return masks
    of_left = []
    for mask, values in zip(masks, scores, strict=True):
        assert len(values) in (len(mask), int(mask.sum())), (len(values), mask)
        of_left.append(values[mask] if len(values) == len(mask) else values)
    # A step before may have gone further down, to a multiple.
    total = min(total, _count(of_left))
    kept = choose(of_left, total, even=even, multiple_of=multiple_of, minimum=minimum)
    found = tuple(mask.clone() for mask in masks)
    for mask, stays in zip(found, kept, strict=True):
        mask[mask.clone()] = stays
    return found


def _all_units(config: LertConfig) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    numbers = range(config.num_hidden_layers)
    return (
        tuple(torch.ones(config.heads_of(number), dtype=torch.bool) for number in numbers),
        tuple(
            torch.ones(config.intermediate_size_of(number), dtype=torch.bool) for number in numbers
        ),
    )


def _in_terms_of(config: LertConfig, shape: Cut, layers: Sequence[int] | None) -> Cut:
    """Return what `shape` leaves of the model without the dropped layers, as a cut of the whole."""
    if layers is None:
        return shape
    assert shape.heads is not None
    assert shape.neurons is not None
    heads, neurons = (list(masks) for masks in _all_units(config))
    for place, number in enumerate(layers):
        heads[number] = torch.tensor(shape.heads[place], dtype=torch.bool)
        neurons[number] = shape.neurons[place]
    return Cut(heads=_as_rows(heads), neurons=tuple(neurons), layers=tuple(layers))


def _as_rows(masks: Sequence[Tensor]) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(mask.tolist()) for mask in masks)


def _count(masks: Sequence[Tensor]) -> int:
    return sum(len(mask) for mask in masks)
