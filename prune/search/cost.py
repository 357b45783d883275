"""What a model of a shape costs: parameters, bytes, or milliseconds, added up over its parts.

    cost = fixed + Σ layers (layer + heads · head + neurons · neuron) + pieces · piece

That holds exactly for parameters and for the bytes of fp32 weights, and nearly for an int8 graph
and for latency; so units of different kinds can be weighed by what they cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lert_ds.configuration_lert import LertConfig
from lert_ds.model_dir import count_parameters
from prune.export.blocks import blocks_of

MIB = 2**20
_TENSOR_NOTE_BYTES = 128
"""What a tensor's name and place take in the head of a safetensors file, at most."""
_COLUMN_NOTE_BYTES = 5
"""int8: the scale of a column of a matrix, or of a block of a table, fp32, and its zero."""
_GRAPH_LAYER_BYTES = 20_000
"""int8: the nodes of a layer, without weights; those of the whole graph, shared out."""


@dataclass(frozen=True)
class LinearCost:
    """What each part of a model costs, in one unit."""

    name: str
    """Key of the configuration that limits it."""
    fixed: float
    layer: float
    """Of a layer without heads and neurons."""
    head: float
    neuron: float
    piece: float
    """Of a piece of the vocabulary."""

    def __call__(self, config: LertConfig) -> float:
        """Return what a model of `config` costs."""
        return self.of(parts_of(config))

    def of(self, parts: Mapping[str, int]) -> float:
        """Return what so many parts cost, by the names of the fields."""
        return sum(count * float(getattr(self, name)) for name, count in parts.items())


def head_size_of(config: LertConfig) -> int:
    """Return the width of a head."""
    return int(config.hidden_size // config.num_attention_heads)


def parts_of(config: LertConfig) -> dict[str, int]:
    """Return how often a model of `config` has each part, by the names of `LinearCost`."""
    numbers = range(config.num_hidden_layers)
    return {
        "fixed": 1,
        "layer": len(numbers),
        "head": sum(config.heads_of(number) for number in numbers),
        "neuron": sum(config.intermediate_size_of(number) for number in numbers),
        "piece": config.vocab_size,
    }


def parameter_cost(config: LertConfig) -> LinearCost:
    """Return the parameters of `LertForPreTraining` cut out of `config`; exact."""
    hidden = config.hidden_size
    head = _head_weights(config) + 3 * head_size_of(config)
    return _with_fixed("parameters", config, 6 * hidden, head, 2 * hidden + 1, hidden + 1)


def size_cost(config: LertConfig, size_of: Literal["fp32", "int8"]) -> LinearCost:
    """Return the MiB (2^20 bytes) of the fp32 weights, or of the int8 graph that `export` writes.

    The fp32 estimate is a few kB above the truth. That of int8 is of a graph with
    masked_positions: a byte for each number of a layer's matrix or of a table, which the decoder
    shares, and four for each of a vector or of a head. A graph that scores every position has a
    second table.
    """
    counted = parameter_cost(config)
    if size_of == "fp32":
        tensors_of_layer = 16
        others = 10 + 2 * len(config.tag_sets or {})
        return LinearCost(
            "size_mb",
            (4 * counted.fixed + _TENSOR_NOTE_BYTES * others) / MIB,
            (4 * counted.layer + _TENSOR_NOTE_BYTES * tensors_of_layer) / MIB,
            4 * counted.head / MIB,
            4 * counted.neuron / MIB,
            4 * counted.piece / MIB,
        )
    hidden, size = config.hidden_size, head_size_of(config)
    note = _COLUMN_NOTE_BYTES
    row = hidden + note * blocks_of(hidden)
    positions = config.max_position_embeddings
    return LinearCost(
        "size_mb",
        (
            # Of what is fixed, all is fp32 (the segments, the heads) but the table of positions;
            # their numbers are there too, int64.
            4 * (counted.fixed - positions * hidden) + positions * (row + 8)
        )
        / MIB,
        (4 * 6 * hidden + 2 * note * hidden + _GRAPH_LAYER_BYTES) / MIB,
        (_head_weights(config) + 3 * size * (4 + note)) / MIB,
        (2 * hidden + 4 + note) / MIB,
        (row + 4) / MIB,
    )


def _head_weights(config: LertConfig) -> int:
    """Return the numbers in the four matrices of a head."""
    return 4 * int(config.hidden_size) * head_size_of(config)


def _with_fixed(
    name: str, config: LertConfig, layer: int, head: int, neuron: int, piece: int
) -> LinearCost:
    counted = LinearCost(name, 0, layer, head, neuron, piece)
    return LinearCost(name, count_parameters(config) - counted(config), layer, head, neuron, piece)
