"""A configuration fits its graph, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from lert_ds.edge.edge_config import check_config, read_config
from lert_ds.errors import ModelError

COMMON = {"vocab_size": 9, "hidden_size": 4, "max_position_embeddings": 16}
TAGS = {"pos": ["n", "v"]}


def config(kind: str, **keys: Any) -> dict[str, Any]:
    return {**COMMON, "architectures": [f"Bert{kind}"], **keys}


@pytest.mark.parametrize(
    ("tree", "sizes"),
    [
        (config("ForMaskedLM"), {"logits": 9}),
        (config("ForMaskedLM"), {"logits": None}),
        (config("ForMaskedLM", tag_sets=TAGS), {"logits": 9, "pos_logits": 2}),
        (config("Model"), {"last_hidden_state": 4, "pooler_output": 4}),
        (config("ForSequenceClassification"), {"logits": 2}),
        (config("ForTokenClassification", id2label={"0": "a"}), {"logits": 1}),
        (config("ForQuestionAnswering"), {"start_logits": None, "end_logits": None}),
    ],
)
def test_what_fits(tree: dict[str, Any], sizes: dict[str, int | None]) -> None:
    check_config(Path("config.json"), tree, "model.onnx", sizes)


@pytest.mark.parametrize(
    ("tree", "sizes", "message"),
    [
        (config("ForMaskedLM"), {"logits": 8}, "vocab_size makes logits 9 wide, in model.onnx it"),
        (config("ForMaskedLM", tag_sets=TAGS), {"logits": 9}, "tag_sets.pos asks for the output p"),
        (
            config("ForMaskedLM", tag_sets=TAGS),
            {"logits": 9, "pos_logits": 3},
            "tag_sets.pos makes pos_logits 2 wide",
        ),
        (
            config("ForMaskedLM"),
            {"logits": 9, "pos_logits": 3},
            "classes of model.onnx's output po",
        ),
        (config("Model"), {"last_hidden_state": 5}, "hidden_size makes last_hidden_state 4 wide"),
        (config("ForSequenceClassification"), {"logits": 3}, "id2label makes logits 2 wide"),
        (config("ForQuestionAnswering"), {"logits": 3}, "asks for the output start_logits"),
    ],
)
def test_what_does_not(tree: dict[str, Any], sizes: dict[str, int | None], message: str) -> None:
    with pytest.raises(ModelError) as raised:
        check_config(Path("a/config.json"), tree, "model.onnx", sizes)
    assert str(raised.value).startswith("a/config.json: ")
    assert message in str(raised.value)
    assert "not of one model: export it again" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json; export"),
        ("{", "not JSON"),
        ("[]", "vocab_size, hidden_size, max_position_embeddings, architectures is not in it"),
        (json.dumps({**COMMON, "architectures": []}), "architectures is not in it"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)
