"""Hidden states, attention, and queries, keys and values of chosen layers, taken from a forward.

Forward hooks on a few modules take what a match compares. The model keeps its fused attention
kernel in every layer: probabilities are computed again, for the chosen layers alone, from their
queries and keys (`output_attentions` needs eager attention, and keeps every layer's).
"""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

Source = tuple[str, int]
"""A part (hidden, query, key, value) and its layer, counted as `Taps` does."""

Feature = Tensor | tuple[Tensor, Tensor, Tensor]
"""What a layer gives: one tensor, or its queries, keys and values."""

_PARTS: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden",),
    "attention": ("query", "key"),
    "attention_scores": ("query", "key"),
    "attention_mean_scores": ("query", "key"),
    "qkv": ("query", "key", "value"),
}
"""Feature to the outputs of modules that it is made from."""

_MADE_FOR = {"attention_ce": "attention_scores", "attention_ce_mean": "attention_mean_scores"}

# Its softmax is 0 beside any score, its log-softmax is finite: their product is 0 and never NaN.
_PADDED_SCORE = -1e4


def tap_feature(feature: str, loss: str) -> str:
    """Return which feature of `Taps` a match of `feature` by `loss` compares.

    TextBrewer's `attention_ce` and `attention_ce_mean` apply a softmax of their own, so they need
    scores where they are told probabilities.
    """
    return _MADE_FOR.get(loss, feature) if feature == "attention" else feature


def sources_of(wanted: Mapping[str, Collection[int]]) -> set[Source]:
    """Return the outputs of modules that features, by their layers, are made from."""
    return {
        (part, layer)
        for feature, layers in wanted.items()
        for part in _PARTS[feature]
        for layer in layers
    }


class Taps:
    """Takes features of chosen layers out of each forward of a model, and changes nothing there.

    Layers are counted as TextBrewer does: hidden state 0 is the output of the embeddings and k that
    of layer k; attention and qkv 0 are those of the first layer. For each layer the features are

    - `hidden`: [batch, length, hidden], as the model computes it;
    - `attention`: float32 [batch, heads, length, length], probabilities before dropout, which are
      0 at padded keys;
    - `attention_scores`: float32 of the same shape, what the softmax of it gives those;
    - `attention_mean_scores`: float32 [batch, length, length], log of their mean over heads;
    - `qkv`: queries, keys and values, each [batch, relation heads, length, size].

    TextBrewer's losses of scores need an `inputs_mask`, of ones where nothing is padded: without
    one they leave out every negative score.

    Gradient checkpointing has to be the non-reentrant one: the other computes what is inside a
    layer without a gradient. Hooks rest outside of the encoder's forward, so what the backward pass
    computes again is not taken.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Mapping[str, Collection[int]],
        relation_heads: int | None = None,
    ) -> None:
        """Put the hooks on `model`; `close` takes them off.

        Args:
            model: Has a `LertModel` as its attribute `bert`.
            wanted: Feature to layers. One whose heads are all pruned has hidden states alone.
            relation_heads: Heads into which `qkv` regroups queries, keys and values; it divides
                their widths in all of the layers.
        """
        self._wanted = {feature: sorted(set(layers)) for feature, layers in wanted.items()}
        self._relation_heads = relation_heads
        self._bert = model.get_submodule("bert")
        self._sources = sources_of(self._wanted)
        for layer in self._wanted.get("qkv", ()):
            width = self._attention(layer).all_head_size
            assert relation_heads is not None
            assert width % relation_heads == 0, (layer, width, relation_heads)
        self._taken: dict[Source, Tensor] = {}
        self._running = False
        self._handles = [
            self._bert.register_forward_pre_hook(self._begin),
            self._bert.register_forward_hook(self._end),
        ]
        for part, layer in sorted(self._sources):
            hook = partial(self._keep, (part, layer))
            self._handles.append(self._module(part, layer).register_forward_hook(hook))

    def take(self, attention_mask: Tensor | None) -> dict[str, dict[int, Feature]]:
        """Return what the last forward left, by feature and layer, and forget it.

        Args:
            attention_mask: That of the forward: [batch, length], true or 1 at real tokens, or None.
        """
        return self.features(self.sources(), attention_mask)

    def sources(self) -> dict[Source, Tensor]:
        """Return what the last forward left as the modules gave it, and forget it.

        Returns:
            Part (hidden, query, key, value) and layer to [batch, length, width].
        """
        assert self._taken.keys() == self._sources, "one forward, then take, once"
        taken, self._taken = self._taken, {}
        return taken

    def features(
        self, sources: Mapping[Source, Tensor], attention_mask: Tensor | None
    ) -> dict[str, dict[int, Feature]]:
        """Return the features, by name and layer, that `sources` make.

        Args:
            sources: Of a forward, as `sources` returned them.
            attention_mask: That of the forward, as `take` wants it.
        """
        real = None if attention_mask is None else attention_mask.bool()
        return {
            feature: {layer: self._feature(feature, layer, sources, real) for layer in layers}
            for feature, layers in self._wanted.items()
        }

    @property
    def layers(self) -> int:
        """How many layers of the encoder have to run for the sources."""
        return max((layer + (part != "hidden") for part, layer in self._sources), default=0)

    def clear(self) -> None:
        """Forget what the last forward left."""
        self._taken = {}

    def close(self) -> None:
        """Take the hooks off the model, and forget."""
        for handle in self._handles:
            handle.remove()
        self.clear()

    def _attention(self, layer: int) -> Any:
        return self._bert.get_submodule(f"encoder.layer.{layer}.attention.self")

    def _module(self, part: str, layer: int) -> nn.Module:
        if part != "hidden":
            return self._bert.get_submodule(f"encoder.layer.{layer}.attention.self.{part}")
        return self._bert.get_submodule(f"encoder.layer.{layer - 1}" if layer else "embeddings")

    def _begin(self, *_: object) -> None:
        self._taken, self._running = {}, True

    def _end(self, *_: object) -> None:
        self._running = False

    def _keep(self, source: tuple[str, int], module: nn.Module, args: Any, output: Tensor) -> None:
        if self._running:
            self._taken[source] = output

    def _feature(
        self,
        feature: str,
        layer: int,
        taken: Mapping[Source, Tensor],
        real: Tensor | None,
    ) -> Feature:
        if feature == "hidden":
            return taken["hidden", layer]
        if feature == "qkv":
            assert self._relation_heads is not None
            size = self._attention(layer).all_head_size // self._relation_heads
            query, key, value = (_heads(taken[part, layer], size) for part in _PARTS["qkv"])
            return query, key, value
        head_size = self._attention(layer).attention_head_size
        scores = _scores(taken["query", layer], taken["key", layer], head_size, real)
        if feature == "attention_scores":
            return scores
        if feature == "attention":
            return torch.softmax(scores, dim=-1)
        # The log of a mean of probabilities, without an underflow of these.
        logs = torch.log_softmax(scores, dim=-1)
        return torch.logsumexp(logs, dim=1) - math.log(scores.shape[1])


@contextlib.contextmanager
def first_layers(model: nn.Module, count: int) -> Iterator[nn.Module]:
    """Give the encoder of `model`, a `LertModel`, with its first `count` layers for a while.

    A model in pieces (ZeRO-3) keeps all: their order is what its pieces are fetched by.
    """
    bert = model.get_submodule("bert")
    encoder = bert.get_submodule("encoder")
    layers: Any = encoder.layer
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        encoder.layer = layers[:count]
    try:
        yield bert
    finally:
        encoder.layer = layers


def _heads(features: Tensor, size: int) -> Tensor:
    """Return [batch, heads, length, size] of [batch, length, heads * size]."""
    return features.view(*features.shape[:2], -1, size).transpose(1, 2)


def _scores(query: Tensor, key: Tensor, head_size: int, real: Tensor | None) -> Tensor:
    """Return float32 [batch, heads, length, length]: q · k / √size, low at padded keys.

    Args:
        query: [batch, length, heads * size].
        key: The same.
        head_size: The size of a head.
        real: bool [batch, length], or None where nothing is padded.
    """
    with torch.autocast(query.device.type, enabled=False):  # it would multiply in half precision
        query, key = _heads(query.float(), head_size), _heads(key.float(), head_size)
        scores: Tensor = (query * head_size**-0.5) @ key.transpose(-1, -2)
    if real is None:
        return scores
    return scores.masked_fill(~real[:, None, None, :], _PADDED_SCORE)


def in_float32(values: T) -> T:
    """Return tensors, at any depth of dicts and tuples, in float32."""
    found: Any = values
    if isinstance(values, Tensor):
        found = values.float()
    elif isinstance(values, dict):
        found = {key: in_float32(value) for key, value in values.items()}
    elif isinstance(values, tuple):
        found = tuple(in_float32(value) for value in values)
    result: T = found
    return result
