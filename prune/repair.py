"""Refitting a cut model in closed form: each layer gives again what the original's gave.

A layer adds to its hidden states two linear maps of what its heads and its neurons say, and
normalises each sum. After a cut we choose these two maps anew, by least squares over some text:

    sum of the original  =  W a + b + x          a  [units] of all its heads, x its input
    sum of the cut one   =  W' a' + b' + x'      a' [units] of those left, x' its own input
    W', b'  minimise  Σ |sum of the original - sum of the cut one|² + ridge · |W' - W'before|²

Layer by layer in order, so that x' and a' come out of what is already refitted, and what an earlier
layer, or one that is gone, has left wrong is made good as far as this one can. The aim are the
original's own sums, not what it would make of x': the reconstruction of Zhang et al. 2015, arXiv
1505.06798, section 3.3, and of He et al. 2017, arXiv 1707.06168, here with the residual stream.

No labels, no gradients, no steps. Where nothing was cut nothing changes, to the bit: what is fitted
is the change of the weights, and the change that undoes no difference is 0.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from lert_ds.errors import ConfigError
from lert_ds.evaluation import evaluating
from lert_ds.model_surgery import Cut, kept, renumbering
from lert_ds.objective import AnyBatch


@torch.no_grad()
def repair(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    cut: Cut,
    batches: Iterable[AnyBatch],
    ridge: float = 1e-2,
    *,
    unknown_id: int | None = None,
) -> None:
    """Refit the output maps of attention and feed-forward of every layer of `pruned`, in place.

    Where a layer has no heads or no neurons left, the bias alone is fitted. Padding does not count.
    The hidden states of the text between two layers stay in memory, of both models:
    2 · tokens · hidden numbers; of what is wider there is only a batch at a time.

    Args:
        original: What was cut, on the same device.
        pruned: What `cut` left of it, refitted or not.
        cut: In terms of `original`.
        batches: The text; their labels are not read.
        ridge: How strongly the weights are held where they were, in units of the mean variance of
            what they read; 0 or more.
        unknown_id: The id of [UNK] in `original`; needed where the vocabulary was cut. Both models
            read it in the place of a piece that is gone.

    Raises:
        ConfigError: there is no text, or `cut` does not fit the original.
    """
    left = kept(original.config, cut)
    layers = dict(zip(left.layers, pruned.base_model.encoder.layer, strict=True))
    new_ids = None
    if left.pieces is not None:
        assert unknown_id is not None
        new_ids = renumbering(left.pieces, original.config.vocab_size, unknown_id)
    with evaluating(original, pruned):
        texts = []
        for batch in batches:
            ids = our_ids = batch.input_ids
            if new_ids is not None and left.pieces is not None:
                our_ids = new_ids[ids.cpu()]
                ids = left.pieces[our_ids]
            texts.append(_Text.of(original, pruned, ids, our_ids, batch))
        if not any(bool(text.real.any()) for text in texts):
            raise ConfigError(
                "repair: there is no text to refit the layers with; name a corpus that has some, "
                "or set repair=false"
            )
        for number, layer in enumerate(original.base_model.encoder.layer):
            if number in layers:
                for theirs, ours in zip(_halves(layer), _halves(layers[number]), strict=True):
                    _refit(theirs, ours, texts, ridge)
            else:
                for text in texts:
                    for theirs in _halves(layer):
                        text.wanted = theirs.normalise(theirs.sum(text.wanted, text.mask))


class NormalEquations:
    """Sums over places of features and targets: all that least squares needs of them, float64.

    They take features² numbers, however much text runs through.
    """

    def __init__(self, features: int, targets: int, device: torch.device) -> None:
        """Start with nothing seen."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._count = 0
        self._features, self._targets = zeros(features), zeros(targets)
        self._squares, self._products = zeros(features, features), zeros(features, targets)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count the rows of features, [places, features], and of targets, [places, targets]."""
        features, targets = features.double(), targets.double()
        self._count += len(features)
        self._features += features.sum(0)
        self._targets += targets.sum(0)
        self._squares += features.T @ features
        self._products += features.T @ targets

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return weight [targets, features] and bias [targets] that fit best, float64.

        Args:
            ridge: Weighs the squares of the weight, in units of the features' mean variance; the
                bias is free.
        """
        mean_features, mean_targets = self._features / self._count, self._targets / self._count
        if not len(mean_features):
            return self._products.T, mean_targets
        covariance = self._squares - self._count * torch.outer(mean_features, mean_features)
        products = self._products - self._count * torch.outer(mean_features, mean_targets)
        # Of features that never vary, rounding is left: the second term outweighs it.
        penalty = ridge * covariance.diagonal().mean() + 1e-12 * self._squares.diagonal().mean()
        covariance.diagonal().add_(torch.where(penalty > 0, penalty, 1.0))
        weight = torch.linalg.solve(covariance, products).T
        return weight, mean_targets - weight @ mean_features


@dataclass
class _Text:
    """A batch on its way through both models; hidden states are [instances, length, hidden]."""

    wanted: Tensor
    """Hidden states of the original."""
    found: Tensor
    """Hidden states of the cut model."""
    mask: Tensor | None
    """What the original's attention takes for `attention_mask`."""
    our_mask: Tensor | None
    """The same of the cut model."""
    real: Tensor
    """bool [instances, length]: not padding."""

    @classmethod
    def of(
        cls,
        original: PreTrainedModel,
        pruned: PreTrainedModel,
        ids: Tensor,
        our_ids: Tensor,
        batch: AnyBatch,
    ) -> "_Text":
        """Return a batch at the door of the first layer."""
        device, attention_mask = original.device, batch.attention_mask
        types = None if batch.token_type_ids is None else batch.token_type_ids.to(device)
        wanted = original.base_model.embeddings(ids.to(device), token_type_ids=types)
        found = pruned.base_model.embeddings(our_ids.to(device), token_type_ids=types)
        real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask
        real = real.to(device, torch.bool)
        given = None if attention_mask is None else real
        mask = create_bidirectional_mask(original.config, wanted, given)
        return cls(
            wanted, found, mask, create_bidirectional_mask(pruned.config, found, given), real
        )


class _Half(NamedTuple):
    """Attention or the feed-forward of a layer: features, a linear map of them, a sum, a norm."""

    features: Callable[[Tensor, Tensor | None], Tensor]
    """Hidden states and the mask of attention to what the linear map reads, [..., features]."""
    output: Any
    """The map and the norm, `dense` and `LayerNorm`."""

    def sum(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.sum_of(self.features(hidden, mask), hidden)

    def sum_of(self, features: Tensor, hidden: Tensor) -> Tensor:
        total: Tensor = self.output.dense(features) + hidden
        return total

    def normalise(self, total: Tensor) -> Tensor:
        normalised: Tensor = self.output.LayerNorm(total)
        return normalised


def _halves(layer: Any) -> tuple[_Half, _Half]:
    def attend(hidden: Tensor, mask: Tensor | None) -> Tensor:
        features: Tensor = layer.attention.self(hidden, attention_mask=mask)[0]
        return features

    def expand(hidden: Tensor, _mask: Tensor | None) -> Tensor:
        features: Tensor = layer.intermediate(hidden)
        return features

    return _Half(attend, layer.attention.output), _Half(expand, layer.output)


def _refit(theirs: _Half, ours: _Half, texts: Sequence[_Text], ridge: float) -> None:
    """Refit the map of `ours`, and take `texts` through both halves."""
    dense = ours.output.dense
    size = texts[0].found.shape[-1]
    equations = NormalEquations(dense.in_features, size, texts[0].found.device)
    for text in texts:
        wanted = theirs.sum(text.wanted, text.mask)
        features = ours.features(text.found, text.our_mask)
        missing = wanted - ours.sum_of(features, text.found)
        equations.add(features[text.real], missing[text.real])
        text.wanted = theirs.normalise(wanted)
    weight, bias = equations.solve(ridge)
    if dense.in_features:
        dense.weight.copy_(dense.weight.double() + weight)
    dense.bias.copy_(dense.bias.double() + bias)
    for text in texts:  # the features once more: to keep them all would take four times the memory
        text.found = ours.normalise(ours.sum(text.found, text.our_mask))
