"""Reading and writing by TensorFlow itself, and what is said where that cannot be."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lert_ds.convert import tensorflow_checkpoint
from lert_ds.convert.tensorflow_checkpoint import Checkpoint, shards, write
from lert_ds.errors import ModelError, UserError


@pytest.fixture
def values() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    sizes: dict[str, tuple[int, ...]] = {"a/kernel": (30, 7), "a/bias": (7,), "b": (3, 5)}
    return {name: generator.standard_normal(size, np.float32) for name, size in sizes.items()}


def write_values(prefix: Path, values: dict[str, Any]) -> None:
    write(prefix, {name: v.shape for name, v in values.items()}, values.__getitem__)


@pytest.fixture
def prefix(tmp_path: Path, values: dict[str, Any]) -> Path:
    pytest.importorskip("tensorflow", reason="needs pip install 'lert-ds[tf]'")
    write_values(tmp_path / "model.ckpt", values)
    return tmp_path / "model.ckpt"


def test_shards_are_told_apart(tmp_path: Path) -> None:
    prefix = tmp_path / "model.ckpt"
    names = [f"model.ckpt.data-0000{number}-of-00003" for number in range(3)]
    for name in (*names, "model.ckpt-5.data-00000-of-00001", "model.ckpt.index"):
        (tmp_path / name).touch()
    assert [path.name for path in shards(prefix)] == names
    assert [path.name for path in shards(tmp_path / "model.ckpt-5")] == [
        "model.ckpt-5.data-00000-of-00001"
    ]
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelError, match=r"model.ckpt.data-00001-of-00003 is missing"):
        shards(prefix)
    (tmp_path / "model.ckpt.data-00000-of-00001").touch()
    with pytest.raises(ModelError, match="of two checkpoints"):
        shards(prefix)
    with pytest.raises(ModelError, match=r"other.data-00000-of-00001 is missing"):
        shards(tmp_path / "other")


def test_without_tensorflow_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "model.ckpt.data-00000-of-00001").touch()
    with pytest.raises(UserError, match=r"pip install 'lert-ds\[tf\]'"):
        Checkpoint(tmp_path / "model.ckpt")


def test_the_arrays_that_are_handed_over_are_aligned_and_apart() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (3, 5), "b": (17,), "c": (), "d": (16,)}
    places = tensorflow_checkpoint._places(shapes)
    assert {name: place.shape for name, place in places.items()} == shapes
    for number, place in enumerate(places.values()):
        assert place.ctypes.data % 64 == 0
        place[...] = number
    assert [set(np.unique(place)) for place in places.values()] == [{0.0}, {1.0}, {2.0}, {3.0}]


def test_what_is_written_is_read(prefix: Path, values: dict[str, Any]) -> None:
    checkpoint = Checkpoint(prefix)
    assert checkpoint.shapes == {name: v.shape for name, v in sorted(values.items())}
    assert list(checkpoint.shapes) == sorted(values)
    assert [path.name for path in checkpoint.files] == [
        "model.ckpt.index",
        "model.ckpt.data-00000-of-00001",
    ]
    for name, expected in values.items():
        assert np.array_equal(checkpoint.read(name), expected)


def test_half_precision_becomes_float32_and_text_is_refused(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="needs pip install 'lert-ds[tf]'")
    tensors = {
        "half": tensorflow.constant([1.5, 2.5], tensorflow.float16),
        "brain": tensorflow.constant([1.5, 2.5], tensorflow.bfloat16),
        "text": tensorflow.constant(["a"]),
    }
    tensorflow.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"), tensor_names=list(tensors),
        shape_and_slices=[""] * 3, tensors=list(tensors.values()),
    )  # fmt: skip
    checkpoint = Checkpoint(tmp_path / "m")
    for name in ("half", "brain"):
        assert checkpoint.read(name).dtype == np.float32
        assert checkpoint.read(name).tolist() == [1.5, 2.5]
    with pytest.raises(ModelError, match="text holds object, no numbers"):
        checkpoint.read("text")


def test_a_data_file_that_was_cut_short(prefix: Path) -> None:
    data = Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"00001: 923 bytes, but the variables take 928"):
        Checkpoint(prefix)


def test_a_data_file_that_was_changed(prefix: Path) -> None:
    data = Path(f"{prefix}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    checkpoint = Checkpoint(prefix)
    with pytest.raises(ModelError, match=r"00001: TensorFlow cannot read it \(.*[Cc]hecksum"):
        [checkpoint.read(name) for name in checkpoint.shapes]


def test_an_index_that_was_changed(prefix: Path) -> None:
    index = Path(f"{prefix}.index")
    index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"ckpt.index: TensorFlow cannot read it"):
        Checkpoint(prefix)
