"""Files of graphs, and formats whose libraries are not installed."""

from pathlib import Path

import pytest

from lert_ds.errors import ConfigError
from prune.export.graphs import FILES, size_of, told_when_missing


def test_weights_count_wherever_they_lie(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"12345")
    assert size_of(tmp_path / "model.onnx") == 5
    (tmp_path / "model.bin").write_bytes(b"1")
    assert size_of(tmp_path / "model.onnx") == 6


def test_formats_do_not_share_a_file() -> None:
    files = [file for names in FILES.values() for file in names.values()]
    assert len(set(files)) == len(files) == 4


@pytest.mark.parametrize(("library", "extra"), [("nncf", "openvino"), ("onnx_ir", "export")])
def test_a_library_that_lacks_is_named(library: str, extra: str) -> None:
    with (
        pytest.raises(ConfigError, match=rf"{library} is not installed; .*lert-ds\[{extra}\]"),
        told_when_missing("onnx"),
    ):
        raise ModuleNotFoundError(name=library)
    with pytest.raises(ModuleNotFoundError), told_when_missing("onnx"):
        raise ModuleNotFoundError(name="lert_ds.none")
