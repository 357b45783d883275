"""Shapes that meet a target: of parameters, MiB or milliseconds, what matters most within it.

    for each set of layers that stay, for each size of the vocabulary:
        for each number of heads:        the best of them, and with what is left of the limit
                                         the best neurons
        the number of heads with the most importance in all is a candidate

The search of Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", arXiv
2204.09656, algorithm 1. Since each head costs the same, and each neuron, it finds the most
importance that there is within the limit. Heads and neurons need scores of one scale: those of
`fisher` and `gate_gradient` are, of the gates of both; norms of weights are not.

What fewer layers or pieces cost in quality no score of heads and neurons says; so there is a
candidate for each, and the better one is found by trying them on text.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lert_ds.config import Config
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.model_surgery import Cut, cut_config
from prune.importance.scores import Scores
from prune.masks import Ranking, rank
from prune.search import latency
from prune.search.cost import LinearCost, parameter_cost, parts_of, size_cost
from prune.search.latency import Runtime

LIMITS = ("parameters", "size_mb", "latency_ms")
_ROUNDING = 1e-9
"""Relative; sums of floating-point costs in another order are not above a limit that they equal."""


class TargetConfig(Config):
    """What the pruned model may cost: one of parameters, size_mb and latency_ms."""

    parameters: int | None = Field(None, ge=1)
    """Most parameters, tied ones once."""
    size_mb: float | None = Field(None, gt=0)
    """Most MiB (2^20 bytes) of the file that size_of names."""
    latency_ms: float | None = Field(None, gt=0)
    """Most milliseconds for a batch on this machine, one [MASK] a text filled."""
    size_of: Literal["fp32", "int8"] = "fp32"
    """size_mb: of `fp32`, the weights of the model folder, or `int8`, the int8 graph of export."""
    runtime: Runtime = "onnx_int8"
    """latency_ms: by `torch`, `onnx_fp32` or `onnx_int8`."""
    length: int = Field(128, ge=1)
    """latency_ms: tokens a text."""
    threads: int = Field(1, ge=1)
    """latency_ms: of the runtime."""
    batch_size: int = Field(1, ge=1)
    """latency_ms: texts a batch."""
    table: Path | None = None
    """latency_ms: where the table measured on this machine is kept; null: measured each time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = [key for key in LIMITS if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(
                f"{' and '.join(named) if named else 'no target'}: name one of {', '.join(LIMITS)}"
            )
        of_latency = {"runtime", "length", "threads", "batch_size", "table"}
        fields = type(self).model_fields
        others = {
            key for key in of_latency | {"size_of"} if getattr(self, key) != fields[key].default
        }
        allowed = {"size_mb": {"size_of"}, "latency_ms": of_latency}.get(named[0], set())
        if unused := sorted(others - allowed):
            raise ValueError(f"{unused[0]} has no part in a target of {named[0]}; leave it out")
        return self

    @property
    def name(self) -> str:
        """The key that is set."""
        return next(key for key in LIMITS if getattr(self, key) is not None)

    @property
    def limit(self) -> float:
        """Its number."""
        return float(getattr(self, self.name))


def cost_of(target: TargetConfig, config: LertConfig) -> LinearCost:
    """Return what `target` limits, for models cut out of one of `config`.

    Raises:
        ConfigError: latencies cannot be measured; see `prune.search.latency.reuse`.
    """
    if target.parameters is not None:
        return parameter_cost(config)
    if target.size_mb is not None:
        return size_cost(config, target.size_of)
    table = latency.reuse(
        target.table,
        config,
        target.runtime,
        batch_size=target.batch_size,
        length=target.length,
        threads=target.threads,
    )
    return table.cost


@dataclass(frozen=True, eq=False)
class Candidate:
    """A shape that meets the target."""

    cut_without_pieces: Cut
    """In terms of the whole model; the pieces are still to be chosen."""
    vocabulary_size: int
    """How many."""
    cost: float
    """In the unit of the limit."""
    importance: float
    """Share of the scores of all heads and neurons of the model that stays, 0 to 1."""


def candidates(
    config: LertConfig,
    scores: Scores,
    cost: LinearCost,
    limit: float,
    *,
    layer_orders: Sequence[tuple[int, ...]],
    vocabulary_sizes: Sequence[int],
    multiple_of: int = 1,
    minimum_heads: int = 1,
    minimum_neurons: int = 1,
    most: int = 12,
) -> list[Candidate]:
    """Return the shapes within `limit` that keep the most importance, the best first.

    One for each set of layers and size of the vocabulary that can meet the limit.

    Args:
        config: Of the model to prune.
        scores: Of all its units; none below 0.
        cost: What is limited.
        limit: The most.
        layer_orders: Sets of layers that may stay, each rising, from 0.
        vocabulary_sizes: Pieces that may stay.
        multiple_of: As in `prune.masks.choose`, of neurons.
        minimum_heads: Fewest heads that a layer keeps.
        minimum_neurons: The same of neurons.
        most: Candidates; of more than that, each size of the vocabulary keeps its best.

    Raises:
        ConfigError: no shape meets the limit.
        ModelError: scores are not finite numbers.
    """
    assert max(vocabulary_sizes) <= config.vocab_size, (vocabulary_sizes, config.vocab_size)
    total = float(sum(values.double().sum() for values in (*scores.heads, *scores.neurons)))
    by_size: dict[int, list[Candidate]] = {size: [] for size in vocabulary_sizes}
    smallest: list[tuple[float, str]] = []
    for layers in layer_orders:
        heads = rank([scores.heads[number] for number in layers], minimum=minimum_heads)
        neurons = rank(
            [scores.neurons[number] for number in layers],
            multiple_of=multiple_of,
            minimum=minimum_neurons,
        )
        fewest = {
            "head": int(_ends(heads)[heads.reserved]),
            "neuron": int(_ends(neurons)[neurons.reserved]),
        }
        for size, found in by_size.items():
            parts = {"fixed": 1, "layer": len(layers), "piece": size}
            best = _best(heads, neurons, cost, limit * (1 + _ROUNDING) - cost.of(parts))
            if best is None:
                smallest.append((cost.of(parts | fewest), _describe(parts | fewest)))
                continue
            shape = _cut(config, layers, heads.first(best[0]), neurons.first(best[1]))
            kept = float(heads.values[: best[0]].sum() + neurons.values[: best[1]].sum())
            spent = cost.of(parts_of(cut_config(config, shape)) | {"piece": size})
            found.append(Candidate(shape, size, spent, kept / total if total else 0.0))
    if not any(by_size.values()):
        spent, shape_told = min(smallest)
        raise ConfigError(
            f"{cost.name} = {limit:g}: no shape meets that; the smallest there is has {spent:.6g}, "
            f"with {shape_told}: ask for more, lower pruning.minimum_heads or "
            "pruning.minimum_neurons, or prune the vocabulary too"
        )
    return _trimmed(list(by_size.values()), most)


def _describe(parts: Mapping[str, int]) -> str:
    names = {"layer": "layers", "head": "heads", "neuron": "neurons", "piece": "pieces"}
    return ", ".join(f"{name} {parts[key]}" for key, name in names.items())


def _trimmed(groups: list[list[Candidate]], most: int) -> list[Candidate]:
    """Return `most` candidates or fewer: of each group in turn its next best; the best first."""
    ordered = [sorted(group, key=_importance, reverse=True) for group in groups]
    turns = itertools.zip_longest(*ordered)
    chosen = [one for turn in turns for one in turn if one is not None][:most]
    return sorted(chosen, key=_importance, reverse=True)


def _importance(candidate: Candidate) -> float:
    return candidate.importance


def _best(
    heads: Ranking, neurons: Ranking, cost: LinearCost, budget: float
) -> tuple[int, int] | None:
    """Return how many groups of heads and of neurons keep the most importance, or None.

    Of equal importance, what costs the most: it spends what the limit allows.
    """
    head_ends, neuron_ends = _ends(heads), _ends(neurons)
    head_values, neuron_values = _sums(heads), _sums(neurons)
    neuron_costs = cost.neuron * neuron_ends.double()
    best: tuple[tuple[float, float], tuple[int, int]] | None = None
    for head_groups in range(heads.reserved, len(head_ends)):
        left = budget - cost.head * int(head_ends[head_groups])
        neuron_groups = int(torch.searchsorted(neuron_costs, left, right=True)) - 1
        if neuron_groups < neurons.reserved:
            break  # as it is with more heads
        value = float(head_values[head_groups] + neuron_values[neuron_groups])
        key = value, budget - left + float(neuron_costs[neuron_groups])
        if best is None or key >= best[0]:
            best = key, (head_groups, neuron_groups)
    return None if best is None else best[1]


def _ends(ranking: Ranking) -> Tensor:
    """Return how many units the first 0, 1, 2, … groups have, int64 [groups + 1]."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), ranking.ends])


def _sums(ranking: Ranking) -> Tensor:
    """Return what the first 0, 1, 2, … groups score, float64 [groups + 1]."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), ranking.values.cumsum(0)])


def _cut(config: LertConfig, layers: tuple[int, ...], heads: Tensor, neurons: Tensor) -> Cut:
    numbers = range(config.num_hidden_layers)
    return Cut(
        heads=tuple(
            tuple(mask.tolist())
            for mask in _spread(heads, layers, list(map(config.heads_of, numbers)))
        ),
        neurons=_spread(neurons, layers, list(map(config.intermediate_size_of, numbers))),
        layers=None if layers == tuple(numbers) else layers,
    )


def _spread(mask: Tensor, layers: Sequence[int], counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the mask of every layer: that of `layers` one after the other, all of the others."""
    masks = [torch.ones(count, dtype=torch.bool) for count in counts]
    parts = torch.split(mask, [counts[number] for number in layers])
    for number, part in zip(layers, parts, strict=True):
        masks[number] = part
    return tuple(masks)
