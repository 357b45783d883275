"""Models that fill [MASK]: one of PyTorch, and graphs made by hand that compute what is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
import torch
from onnx import TensorProto, helper, numpy_helper

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.edge.folder import GRAPHS
from lert_ds.modeling_lert import LertForPreTraining

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。", "##ing", "go"]
TAGS = {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"]}
POSITIONS = 16


@pytest.fixture
def write_filler() -> Callable[..., LertForPreTraining]:
    """Write a model folder, of random weights, and return its model: folder, tag sets."""

    def write(folder: Path, tag_sets: Any = TAGS) -> LertForPreTraining:
        torch.manual_seed(0)
        config = LertConfig(
            vocab_size=len(PIECES),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=POSITIONS,
            tag_sets=tag_sets,
        )
        model = LertForPreTraining(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        vocabulary = folder.parent / "vocabulary"
        vocabulary.mkdir(exist_ok=True)
        (vocabulary / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
        model_dir.save(model, vocabulary, folder)
        return model.eval()

    return write


def tables() -> dict[str, np.ndarray[Any, Any]]:
    """Each output's logits of a piece, [vocabulary, classes], and of a place, [positions, 1]."""
    generator = np.random.default_rng(0)
    widths = {"logits": len(PIECES), **{f"{task}_logits": len(tags) for task, tags in TAGS.items()}}
    made = {
        name: generator.normal(size=(len(PIECES), width)).astype(np.float32)
        for name, width in widths.items()
    }
    places = generator.normal(size=(POSITIONS, 1)).astype(np.float32)
    return {**made, "places": places}


def _graph(outputs: tuple[str, ...], masked_positions: bool, scale: float) -> onnx.ModelProto:
    """Return a graph whose logits at a position are its piece's times its place's."""
    made = tables()
    texts = {name: ["batch", "length"] for name in ("input_ids", "attention_mask")}
    shapes = {**texts, "masked_positions": ["n"]} if masked_positions else texts
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Squeeze", ["length"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["range"]),
        helper.make_node("Gather", ["places", "range"], ["here"]),
    ]
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "places": made["places"],
    }
    given = []
    for name in outputs:
        constants[f"{name}.table"] = scale * made[name]
        whole = f"{name}.whole" if masked_positions else name
        nodes.append(helper.make_node("Gather", [f"{name}.table", "input_ids"], [f"{name}.rows"]))
        nodes.append(helper.make_node("Mul", [f"{name}.rows", "here"], [whole]))
        shape: list[Any] = ["batch", "length", made[name].shape[1]]
        if masked_positions:
            constants[f"{name}.flat"] = np.array([-1, made[name].shape[1]])
            flat = [f"{name}.flattened"]
            nodes.append(helper.make_node("Reshape", [whole, f"{name}.flat"], flat))
            nodes.append(helper.make_node("Gather", [*flat, "masked_positions"], [name]))
            shape = ["n", made[name].shape[1]]
        given.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "edge",
        [helper.make_tensor_value_info(n, TensorProto.INT64, s) for n, s in shapes.items()],
        given,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def write_edge() -> Callable[..., Path]:
    """Write an edge folder whose graphs give `tables`; int8's are twice as large."""

    def write(
        folder: Path,
        *,
        masked_positions: bool = False,
        outputs: tuple[str, ...] = ("logits", "pos_logits", "ner_logits"),
        graphs: tuple[str, ...] = ("fp32", "int8"),
        **config: Any,
    ) -> Path:
        (folder / "onnx").mkdir(parents=True)
        for name in graphs:
            scale = 2.0 if name == "int8" else 1.0
            onnx.save(_graph(outputs, masked_positions, scale), folder / GRAPHS[name])
        vocabulary = {piece: number for number, piece in enumerate(PIECES)}
        tokenizer = tokenizers.BertWordPieceTokenizer(vocabulary)
        tokenizer.enable_truncation(4)  # as some hubs' files have it: it would cut texts unseen
        tokenizer.enable_padding(length=12)
        tokenizer.save(str(folder / "tokenizer.json"))
        tree = {
            "architectures": ["BertForMaskedLM"],
            "vocab_size": len(PIECES),
            "hidden_size": 32,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 0,
            "tag_sets": {task: TAGS[task] for task in TAGS if f"{task}_logits" in outputs},
            **config,
        }
        (folder / "config.json").write_text(json.dumps(tree), "utf-8")
        return folder

    return write


@pytest.fixture
def edge_tables() -> dict[str, np.ndarray[Any, Any]]:
    """What the graphs of `write_edge` compute: logits = tables[output][piece] * places[place]."""
    return tables()
