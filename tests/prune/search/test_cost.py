from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.configuration_lert import LertConfig
from lert_ds.model_dir import count_parameters
from lert_ds.modeling_lert import LertForPreTraining
from prune.export import onnx_graph
from prune.search.cost import MIB, parameter_cost, parts_of, size_cost

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "tag_sets": {"pos": ["n", "v", "a"], "dep": ["HED", "ATT"]},
}


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=4),
    pieces=st.integers(1, 400),
)
def test_parameters_are_exact_whatever_is_cut(sizes: list[tuple[int, int]], pieces: int) -> None:
    cost = parameter_cost(LertConfig(**SHAPE))
    config = LertConfig(
        **SHAPE
        | {
            "vocab_size": pieces,
            "pad_token_id": 0,
            "num_hidden_layers": len(sizes),
            "layer_attention_heads": [heads for heads, _ in sizes],
            "layer_intermediate_sizes": [neurons for _, neurons in sizes],
        }
    )
    assert cost(config) == count_parameters(config)
    # The same from wherever one starts.
    assert parameter_cost(config) == cost


def test_parts_add_up_to_the_model() -> None:
    config = LertConfig(
        **SHAPE, layer_attention_heads=[1, 0, 4], layer_intermediate_sizes=[0, 20, 5]
    )
    assert parts_of(config) == {"fixed": 1, "layer": 3, "head": 5, "neuron": 25, "piece": 300}


def make_config(**changes: Any) -> LertConfig:
    sizes = {"vocab_size": 3000, "hidden_size": 128, "intermediate_size": 512}
    return LertConfig(**SHAPE | sizes | changes)


SHAPES = [
    {},
    {"tag_sets": None, "vocab_size": 6000},
    {
        "num_hidden_layers": 6,
        "layer_attention_heads": [4, 2, 1, 1, 0, 3],
        "layer_intermediate_sizes": [512, 0, 64, 128, 200, 31],
    },
]


@pytest.mark.parametrize("changes", SHAPES)
def test_fp32_is_the_size_of_the_weights_file(changes: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(**changes)
    LertForPreTraining(config).save_pretrained(tmp_path)
    found = (tmp_path / "model.safetensors").stat().st_size / MIB
    assert found <= size_cost(config, "fp32")(config) <= 1.02 * found


def test_int8_is_near_the_size_of_the_graph(tmp_path: Path) -> None:
    config = make_config(
        num_hidden_layers=2, layer_attention_heads=[3, 0], layer_intermediate_sizes=[200, 512]
    )
    model = LertForPreTraining(config).eval()
    with torch.no_grad():  # equal vectors would be kept once
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    program = onnx_graph.quantize(onnx_graph.to_onnx(model, masked_positions=True))
    onnx_graph.save(program, tmp_path / "model.onnx")
    found = (tmp_path / "model.onnx").stat().st_size / MIB
    assert size_cost(config, "int8")(config) == pytest.approx(found, rel=0.01)
