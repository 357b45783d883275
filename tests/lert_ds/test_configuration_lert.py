"""The shape of a LERT."""

import ast
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from lert_ds import configuration_lert
from lert_ds.configuration_lert import LertConfig
from lert_ds.labels import LTP_TAGS, TASKS

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


def test_is_bert_unless_it_says_otherwise() -> None:
    config = LertConfig(**SIZES, intermediate_size=64)
    assert config.model_type == "lert"
    assert [config.heads_of(layer) for layer in range(2)] == [4, 4]
    assert [config.intermediate_size_of(layer) for layer in range(2)] == [64, 64]
    assert config.tasks == ()


def test_each_layer_may_have_its_own_size() -> None:
    config = LertConfig(**SIZES, layer_attention_heads=[0, 3], layer_intermediate_sizes=[7, 0])
    assert [config.heads_of(layer) for layer in range(2)] == [0, 3]
    assert [config.intermediate_size_of(layer) for layer in range(2)] == [7, 0]


def test_comes_back_from_a_file(tmp_path: Path) -> None:
    tag_sets = {task: list(LTP_TAGS[task]) for task in TASKS}
    config = LertConfig(**SIZES, layer_attention_heads=[0, 3], tag_sets=tag_sets)
    config.save_pretrained(tmp_path)
    again = LertConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.tag_sets == tag_sets


def test_tasks_have_one_order_whatever_the_file_does_to_it() -> None:
    shuffled = {task: ["a"] for task in ("zz", "dep", "ner", "aa", "pos")}
    assert LertConfig(tag_sets=shuffled).tasks == (*TASKS, "aa", "zz")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer_attention_heads": [4]}, "layer_attention_heads has 1 numbers for .* 2 layers"),
        ({"layer_attention_heads": [4, 5]}, "layer_attention_heads .* 0 to 4"),
        ({"layer_intermediate_sizes": [-1, 4]}, "layer_intermediate_sizes .* 0 or more"),
        ({"layer_intermediate_sizes": [1.5, 4]}, "layer_intermediate_sizes"),
        ({"num_attention_heads": 5}, "hidden_size = 32 .* num_attention_heads = 5"),
        ({"tag_sets": {"pos": []}}, "tag_sets.pos is empty"),
        ({"tag_sets": {"pos": ["n", "v", "n"]}}, "tag_sets.pos names n more than once"),
        ({"tag_sets": {"part of speech": ["n"]}}, "'part of speech' cannot name a task"),
        ({"tag_sets": {"pos": [1]}}, "tag_sets"),
    ],
)
def test_refuses_what_cannot_be_built(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=rf"(?s){message}"):
        LertConfig(**{**SIZES, **wrong})


def test_travels_alone() -> None:
    tree = ast.parse(Path(configuration_lert.__file__).read_text("utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"huggingface_hub.dataclasses", "transformers"}
