"""Keys of an export that contradict each other."""

from pathlib import Path
from typing import Any

import pytest

from lert_ds.config import dump, parse
from lert_ds.errors import ConfigError
from prune.export.export_config import ExportConfig


def read(**keys: Any) -> ExportConfig:
    return parse(ExportConfig, {"model": "a", "output": "b", **keys}, "test")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"head": "encoder", "masked_positions": True}, "a model for encoder fills no"),
        ({"int8": False, "reduce_range": True}, "reduce_range is of int8 weights"),
        ({"format": "openvino", "fuse": False}, "fuse is of format = onnx"),
        ({"format": "openvino", "opset": 18}, "opset is of format = onnx"),
        ({"format": "tflite"}, "format = 'tflite'"),
        ({"opset": 23}, "opset = 23"),
        ({"accuracy": {"corpus": "a", "examples": "b"}}, "accuracy.corpus is for mlm"),
        ({"accuracy": {"largest_drop": 2}}, "accuracy.largest_drop = 2"),
        ({"accuracy": {"instances": 0}}, "accuracy.instances = 0"),
    ],
)
def test_what_contradicts(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**keys)


def test_a_record_reads_back() -> None:
    given = read(format="openvino", accuracy={"corpus": ["a", "b"]})
    assert given.accuracy.corpus == (Path("a"), Path("b"))
    assert parse(ExportConfig, dump(given), "record") == given
