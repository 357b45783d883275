"""Which heads and neurons stay: how many, by the user's numbers, and which, by their scores.

The settings have the names of TextPruner's `TransformerPruningConfig` (Yang et al. 2022, ACL
demos, "TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models"), and where its
`generate_mask` keeps what it was asked for, `choose` keeps the same. Where it does not:

    asked for                          generate_mask keeps         choose keeps
    30 of 48 in 12 even layers         24: it rounds down          30: some layers get one more
    24, and two layers would be empty  26: none goes for those     24
    0                                  all                         none, where minimum is 0
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lert_ds.config import Config
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError


class PruningConfig(Config):
    """How many heads and neurons stay, and in how many steps the others go."""

    pruning_method: Literal["iterative", "masks"] = "iterative"
    """`iterative`: by scores, in n_iters steps; `masks`: those that a file names."""
    target_num_of_heads: float | None = None
    """Attention heads that stay, the average a layer; null: all."""
    target_ffn_size: int | None = None
    """Feed-forward neurons that stay, the average a layer; null: all."""
    head_even_masking: bool = True
    """As many heads in each layer; false: where they matter most."""
    ffn_even_masking: bool = True
    """As many neurons in each layer; false: where they matter most."""
    n_iters: int = Field(1, ge=1)
    """Steps in which the units go; what is left is scored anew before each."""
    multiple_of: int = Field(1, ge=1)
    """ffn_even_masking=false: a layer keeps a multiple of so many neurons."""
    pruning_order: Literal["head-first", "ffn-first"] | None = None
    """Heads and neurons in turn, in 2 * n_iters steps; null: both in each step."""
    masks: Path | None = None
    """pruning_method=masks: a safetensors file of head_mask and ffn_mask, true for what stays."""
    minimum_heads: int = Field(1, ge=0)
    """Fewest heads that a layer keeps; 0 lets it lose them all."""
    minimum_neurons: int = Field(1, ge=0)
    """Fewest neurons that a layer keeps; 0 lets it lose them all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, least in (
            ("target_num_of_heads", "minimum_heads"),
            ("target_ffn_size", "minimum_neurons"),
        ):
            value = getattr(self, key)
            if value is None:
                continue
            if not 0 <= value < float("inf"):
                raise ValueError(f"{key} = {value}: must be 0 or more")
            if not value and getattr(self, least):
                raise ValueError(
                    f"{key} = 0 leaves a layer nothing; ask for more, or say {least}=0 if you "
                    "mean it"
                )
            if self.pruning_method == "masks":
                raise ValueError(
                    f"{key} is of pruning_method=iterative; with masks the file says what stays, "
                    "so leave it out"
                )
        if self.target_ffn_size is not None and self.target_ffn_size % self.multiple_of:
            raise ValueError(
                f"target_ffn_size = {self.target_ffn_size} is no multiple of multiple_of = "
                f"{self.multiple_of}; ask for {_near_multiples(self)}"
            )
        if self.pruning_method == "masks" and self.masks is None:
            raise ValueError("pruning_method = masks needs masks = a safetensors file")
        if self.pruning_method == "iterative" and self.masks is not None:
            raise ValueError("masks is of pruning_method=masks; say so, or leave masks out")
        return self


def _near_multiples(config: PruningConfig) -> str:
    assert config.target_ffn_size is not None
    below = config.target_ffn_size // config.multiple_of * config.multiple_of
    above = below + config.multiple_of
    return f"{below} or {above}" if below else str(above)


class Totals(NamedTuple):
    """How many units stay in all the layers that stay; None where they all do."""

    heads: int | None
    neurons: int | None


def check(
    config: PruningConfig, model_config: LertConfig, layers: Sequence[int] | None = None
) -> Totals:
    """Return how many heads and neurons stay in all.

    Args:
        config: With averages, of which the nearest whole total is taken.
        model_config: Of the model to prune.
        layers: The layers that stay, from 0; None for all.

    Raises:
        ConfigError: the model has fewer than that, or its layers keep more by minimum_*.
    """
    numbers = range(model_config.num_hidden_layers) if layers is None else layers
    return Totals(
        _total(
            ("target_num_of_heads", config.target_num_of_heads),
            ("minimum_heads", config.minimum_heads),
            [model_config.heads_of(number) for number in numbers],
            1,
        ),
        _total(
            ("target_ffn_size", config.target_ffn_size),
            ("minimum_neurons", config.minimum_neurons),
            [model_config.intermediate_size_of(number) for number in numbers],
            1 if config.ffn_even_masking else config.multiple_of,
        ),
    )


def _total(
    target: tuple[str, float | None], minimum: tuple[str, int], sizes: Sequence[int], multiple: int
) -> int | None:
    (key, average), (minimum_key, fewest) = target, minimum
    if average is None:
        return None
    total = round(average * len(sizes))
    asked = f"pruning.{key} = {average:g} asks for {total} in {len(sizes)} layers"
    if total > sum(sizes):
        raise ConfigError(
            f"{asked}, but they have {sum(sizes)}; ask for at most {sum(sizes) / len(sizes):g}"
        )
    least = sum(min(-(-fewest // multiple) * multiple, size) for size in sizes)
    if total < least:
        raise ConfigError(
            f"{asked}, but by pruning.{minimum_key} = {fewest} they keep {least}; ask for at least "
            f"{least / len(sizes):g}, or lower {minimum_key}"
        )
    return total


def choose(
    scores: Sequence[Tensor], total: int, *, even: bool, multiple_of: int = 1, minimum: int = 1
) -> tuple[Tensor, ...]:
    """Return which units stay, bool [units] a layer: the `total` that score the highest.

    Of equal scores the first layer's, and in a layer the first, stay.

    Args:
        scores: [units] a layer, which may have different numbers of them, or none.
        total: How many stay in all; at least what `minimum` makes the layers keep.
        even: As many in each layer that has them. Where that does not come out even, the layers
            whose next unit scores the highest keep one more.
        multiple_of: Uneven alone: a layer keeps a multiple of it, or all that it has. The units of
            a layer are taken in groups of it, the best with the best, and ranked by the sums of
            their scores; `total` is then the most that stay.
        minimum: Fewest that a layer keeps; all, where it has fewer.

    Raises:
        ModelError: a score is not a finite number.
    """
    sizes = [len(values) for values in scores]
    assert 0 <= total <= sum(sizes), (total, sizes)
    assert total >= sum(min(minimum, size) for size in sizes), (total, minimum, sizes)
    _refuse_not_finite(scores)
    if even:
        counts = _even_counts(scores, total)
        masks = [torch.zeros(size, dtype=torch.bool) for size in sizes]
        for mask, values, count in zip(masks, scores, counts, strict=True):
            mask[values.argsort(descending=True, stable=True)[:count]] = True
        return tuple(masks)
    ranking = rank(scores, multiple_of=multiple_of, minimum=minimum)
    groups = int(torch.searchsorted(ranking.ends, total, right=True))
    assert groups >= ranking.reserved, (total, minimum, sizes)
    return tuple(torch.split(ranking.first(groups), sizes))


def _even_counts(scores: Sequence[Tensor], total: int) -> list[int]:
    """Return how many units each layer keeps, as even as their numbers of units let them be."""
    sizes = [len(values) for values in scores]
    share = 0
    while sum(min(size, share + 1) for size in sizes) <= total and share < max(sizes, default=0):
        share += 1
    counts = [min(size, share) for size in sizes]
    larger = [number for number, size in enumerate(sizes) if size > share]
    nexts = {number: float(scores[number].sort(descending=True).values[share]) for number in larger}
    for number in sorted(larger, key=nexts.__getitem__, reverse=True)[: total - sum(counts)]:
        counts[number] += 1
    return counts


def _refuse_not_finite(scores: Sequence[Tensor]) -> None:
    for number, values in enumerate(scores):
        if not bool(values.isfinite().all()):
            raise ModelError(
                f"the scores of layer {number} (from 0) are not finite numbers; the weights of the "
                "model are damaged, or its precision is too low to score in"
            )


class Ranking(NamedTuple):
    """All units in the order in which they are kept, in groups that stay or go as one."""

    units: Tensor
    """int64 [units]: the unit's place among those of all layers, one layer after the other."""
    ends: Tensor
    """int64 [groups]: how many units there are up to the end of the group."""
    values: Tensor
    """float64 [groups]: the sum of its scores."""
    reserved: int
    """So many groups come first because a layer keeps them whatever they score."""

    def first(self, groups: int) -> Tensor:
        """Return the mask of the first `groups` groups, bool [units]."""
        mask = torch.zeros(len(self.units), dtype=torch.bool)
        mask[self.units[: int(self.ends[groups - 1]) if groups else 0]] = True
        return mask


def rank(scores: Sequence[Tensor], *, multiple_of: int = 1, minimum: int = 1) -> Ranking:
    """Return all units in the order in which uneven `choose` keeps them; its arguments."""
    units, groups, sums, reserved = [], [], [], []
    first_unit = first_group = 0
    for values in scores:
        order = values.argsort(descending=True, stable=True)
        of_unit = torch.arange(len(values)) // multiple_of
        count = -(-len(values) // multiple_of)
        of_group = torch.zeros(count, dtype=torch.float64)
        of_group.index_add_(0, of_unit, values[order].double())
        units.append(first_unit + order)
        groups.append(first_group + of_unit)
        # A last group of fewer units than multiple_of comes after the whole ones of its layer, even
        # where scores are negative.
        sums.append(of_group.cummin(0).values if count else of_group)
        reserved.append(torch.arange(count) < -(-minimum // multiple_of))
        first_unit += len(values)
        first_group += count
    group_of, group_sums, is_reserved = torch.cat(groups), torch.cat(sums), torch.cat(reserved)
    by_sum = group_sums.argsort(descending=True, stable=True)
    kept_order = by_sum[(~is_reserved[by_sum]).int().argsort(stable=True)]
    places = torch.empty_like(kept_order)
    places[kept_order] = torch.arange(len(kept_order))
    return Ranking(
        units=torch.cat(units)[places[group_of].argsort(stable=True)],
        ends=torch.bincount(group_of, minlength=len(kept_order))[kept_order].cumsum(0),
        values=group_sums[kept_order],
        reserved=int(is_reserved.sum()),
    )
