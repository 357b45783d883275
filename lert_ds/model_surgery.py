"""Cutting a model to a shape: the same class, smaller tensors, and a configuration that says so.

    Cut(heads=((True, False, True, True), …),    layer 0 loses its second head
        neurons=(mask, …),                       bool [neurons] a layer
        layers=(0, 2, 3),                        layer 1 goes, whatever is left of it
        pieces=ids)                              the vocabulary shrinks to these ids, renumbered

What is cut is cut out: no mask and no zero stays behind. What is left computes what the original
does with the outputs of the cut heads and neurons at zero.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError

M = TypeVar("M", bound=PreTrainedModel)

_OF_THE_VOCABULARY = re.compile(
    r"(.*\.)?embeddings\.word_embeddings\.weight|cls\.predictions\.(decoder\.)?(weight|bias)"
)
_OF_A_LAYER = re.compile(r"(?P<before>.*encoder\.layer\.)(?P<number>\d+)\.(?P<name>.+)")


@dataclass(frozen=True, eq=False)
class Cut:
    """What of a model stays; None is all. Every layer of the model counts, dropped ones too."""

    heads: tuple[tuple[bool, ...], ...] | None = None
    """Whether a head stays, for each layer and each head that the layer has."""
    neurons: tuple[Tensor, ...] | None = None
    """Whether a feed-forward neuron stays: bool [neurons] for each layer."""
    layers: tuple[int, ...] | None = None
    """The layers that stay, counted from 0, rising."""
    pieces: Tensor | None = None
    """The ids of the vocabulary that stay, int64, rising; the k-th becomes id k."""


class Kept(NamedTuple):
    """What a `Cut` leaves of one model, as indices into its tensors, each int64 and rising."""

    layers: tuple[int, ...]
    """The layers that stay, counted from 0."""
    heads: tuple[Tensor, ...]
    """The heads that stay in each of these layers."""
    neurons: tuple[Tensor, ...]
    """The neurons that stay in each of these layers."""
    pieces: Tensor | None
    """The ids that stay; None where all do."""


def kept(config: LertConfig, shape: Cut) -> Kept:
    """Return what `shape` leaves of a model of `config`.

    Raises:
        ConfigError: a mask does not fit the model, no layer is left, or [PAD] is cut.
    """
    layers = _kept_layers(config, shape.layers)
    head_counts = [config.heads_of(number) for number in range(config.num_hidden_layers)]
    neuron_counts = [config.intermediate_size_of(n) for n in range(config.num_hidden_layers)]
    heads = (
        None
        if shape.heads is None
        else [torch.tensor(row, dtype=torch.bool) for row in shape.heads]
    )
    return Kept(
        layers,
        _kept_units("heads", heads, head_counts, layers),
        _kept_units("neurons", shape.neurons, neuron_counts, layers),
        None if shape.pieces is None else _checked_pieces(config, shape.pieces),
    )


def cut_config(config: LertConfig, shape: Cut) -> LertConfig:
    """Return the configuration of a model of `config` cut to `shape`; `config` stays as it is.

    Raises:
        ConfigError: as `kept` does.
    """
    return _config_of(config, kept(config, shape))


@torch.no_grad()
def cut(model: M, shape: Cut) -> M:
    """Return what `shape` leaves of `model`, which stays as it is.

    The result shares no memory with it, is trainable throughout, and has its device, number type
    and train or eval mode. With nothing to cut it is equal bit for bit.

    Args:
        model: Of a class of `lert_ds.modeling_lert`, whole on one device; pruned ones can be cut
            again.
        shape: In terms of `model` as it is, not of what it once was.

    Raises:
        ConfigError: as `kept` does.
    """
    left = kept(model.config, shape)
    config = _config_of(model.config, left)
    with no_init_weights():  # all of them are loaded below; and no random number is drawn
        smaller: M = type(model)(config)
    smaller.tie_weights()
    smaller.to(device=model.device, dtype=model.dtype).train(model.training)
    smaller.load_state_dict(_weights_of(model, left))
    return smaller


@torch.no_grad()
def expand(smaller: M, model: M, shape: Cut) -> M:
    """Return a model of `model`'s size that computes what `smaller` does: zeros for what was cut.

    The inverse of `cut`, but for what is gone. Layers and pieces cannot come back.

    Args:
        smaller: What `shape` left of `model`, its weights changed since or not.
        model: What was cut; it stays as it is.
        shape: Heads and neurons alone.
    """
    assert shape.layers is None, shape.layers
    assert shape.pieces is None
    left = kept(model.config, shape)
    whole = copy.deepcopy(model)
    weights = whole.state_dict()
    for name, weight in weights.items():
        if (in_layer := _OF_A_LAYER.fullmatch(name)) is not None:
            number = int(in_layer["number"])
            head_size = model.config.hidden_size // model.config.num_attention_heads
            units = _units_of(left.heads[number], head_size)
            index = _index_of(in_layer["name"], units, left.neurons[number])
            if index is not None:
                weight.zero_()
        else:
            index = None
        if index is None:
            weight.copy_(smaller.state_dict()[name])
        elif weight[index].numel():
            weight[index] = smaller.state_dict()[name].to(weight.dtype)
    return whole


def renumbering(pieces: Tensor, vocabulary_size: int, unknown_id: int) -> Tensor:
    """Return the new id of each old one, int64 [vocabulary_size]; a cut piece's is that of [UNK].

    Args:
        pieces: The ids that stay, as in `Cut`.
        vocabulary_size: How many ids there were.
        unknown_id: The old id of [UNK], which stays.
    """
    place = torch.searchsorted(pieces, torch.tensor(unknown_id))
    assert place < len(pieces), unknown_id
    assert pieces[place] == unknown_id, unknown_id
    new_ids = torch.full((vocabulary_size,), int(place))
    new_ids[pieces] = torch.arange(len(pieces))
    return new_ids


def _kept_layers(config: LertConfig, layers: Sequence[int] | None) -> tuple[int, ...]:
    count = config.num_hidden_layers
    if layers is None:
        return tuple(range(count))
    if not layers:
        raise ConfigError("layers: none is left; keep at least one")
    if list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < count:
        raise ConfigError(
            f"layers = {list(layers)}: the model has {count}; name those that stay, "
            f"rising, from 0 to {count - 1}"
        )
    return tuple(layers)


def _kept_units(
    key: str, masks: Sequence[Tensor] | None, counts: Sequence[int], layers: Sequence[int]
) -> tuple[Tensor, ...]:
    if masks is None:
        return tuple(torch.arange(counts[number]) for number in layers)
    if len(masks) != len(counts):
        raise ConfigError(
            f"{key}: a mask for {len(masks)} layers, but the model has {len(counts)}; "
            "give one a layer, of dropped layers too"
        )
    for number, (mask, count) in enumerate(zip(masks, counts, strict=True)):
        if mask.dtype != torch.bool or mask.shape != (count,):
            raise ConfigError(
                f"{key}: the mask of layer {number} (from 0) is {mask.dtype} {list(mask.shape)}, "
                f"but the layer has {count}; give one true or false for each"
            )
    return tuple(masks[number].nonzero()[:, 0].cpu() for number in layers)


def _checked_pieces(config: LertConfig, pieces: Tensor) -> Tensor:
    size = config.vocab_size
    if pieces.dtype != torch.int64 or pieces.dim() != 1 or not len(pieces):
        raise ConfigError(
            f"pieces: {pieces.dtype} {list(pieces.shape)}; give the ids that stay, int64 [pieces], "
            "at least one"
        )
    if bool((pieces.diff() <= 0).any()) or not 0 <= int(pieces[0]) <= int(pieces[-1]) < size:
        raise ConfigError(
            f"pieces: the ids that stay have to rise, from 0 to {size - 1}; sort them, "
            "and name each once"
        )
    if config.pad_token_id is not None and config.pad_token_id not in pieces:
        raise ConfigError(f"pieces: [PAD], id {config.pad_token_id}, has to stay; keep it")
    return pieces.cpu()


def _config_of(config: LertConfig, left: Kept) -> LertConfig:
    smaller = copy.deepcopy(config)
    smaller.num_hidden_layers = len(left.layers)
    heads = [len(kept_heads) for kept_heads in left.heads]
    # num_attention_heads also says the size of a head, so it stays.
    smaller.layer_attention_heads = None if set(heads) == {config.num_attention_heads} else heads
    neurons = [len(kept_neurons) for kept_neurons in left.neurons]
    # A size of 0 for all would make plain linear layers without elements; the list does not.
    if len(set(neurons)) == 1 and neurons[0]:
        smaller.intermediate_size, smaller.layer_intermediate_sizes = neurons[0], None
    else:
        smaller.layer_intermediate_sizes = neurons
    if left.pieces is not None:
        smaller.vocab_size = len(left.pieces)
        for key, value in config.to_dict().items():
            if key.endswith("_token_id") and isinstance(value, int):
                places = (left.pieces == value).nonzero()
                setattr(smaller, key, int(places[0]) if len(places) else None)
    smaller.validate()
    return smaller


def _weights_of(model: PreTrainedModel, left: Kept) -> dict[str, Tensor]:
    """Return the weights that stay, by the names that they will have.

    A weight without elements has no name: `modeling_lert` has no parameter for it.
    """
    head_size = model.config.hidden_size // model.config.num_attention_heads
    units = [_units_of(heads, head_size) for heads in left.heads]
    new_numbers = {number: place for place, number in enumerate(left.layers)}
    weights = {}
    for name, weight in model.state_dict().items():
        in_layer = _OF_A_LAYER.fullmatch(name)
        if in_layer is not None:
            place = new_numbers.get(int(in_layer["number"]))
            if place is None:
                continue
            part = _of_layer(in_layer["name"], weight, units[place], left.neurons[place])
            if part.numel():
                weights[f"{in_layer['before']}{place}.{in_layer['name']}"] = part
        elif left.pieces is not None and _OF_THE_VOCABULARY.fullmatch(name):
            weights[name] = weight[left.pieces.to(weight.device)]
        else:
            weights[name] = weight
    return weights


def _units_of(heads: Tensor, head_size: int) -> Tensor:
    """Return the units of `heads` among a layer's queries, int64 [heads * head_size]."""
    units: Tensor = heads[:, None] * head_size + torch.arange(head_size)
    return units.flatten()


def _of_layer(name: str, weight: Tensor, units: Tensor, neurons: Tensor) -> Tensor:
    index = _index_of(name, units.to(weight.device), neurons.to(weight.device))
    return weight if index is None else weight[index]


def _index_of(name: str, units: Tensor, neurons: Tensor) -> tuple[slice | Tensor, ...] | None:
    """Return where in a layer's weight `name` the units of its heads, or its neurons, stand."""
    if name.startswith("attention.self."):
        return (units,)
    if name == "attention.output.dense.weight":
        return (slice(None), units)
    if name.startswith("intermediate.dense."):
        return (neurons,)
    if name == "output.dense.weight":
        return (slice(None), neurons)
    return None
