"""Checkpoints to convert: TensorFlow's own, and stand-ins where TensorFlow is not installed.

A stand-in has the same files, with NumPy's format in them; everything but TensorFlow's one module
is tested with it. Tests that take `store` run twice where TensorFlow is installed:
pip install 'lert-ds[tf]' (docs/convert.md).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lert_ds.configuration_lert import LertConfig
from lert_ds.convert import mapping, tensorflow_checkpoint, to_folder
from lert_ds.labels import LTP_TAGS

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。", "##a", "b"]
SIZES: dict[str, Any] = {
    "vocab_size": len(PIECES),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}
DATA = ".data-00000-of-00001"


class StandIn:
    """A checkpoint of NumPy's, with the interface of `tensorflow_checkpoint.Checkpoint`."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.files = [Path(f"{prefix}.index"), *tensorflow_checkpoint.shards(prefix)]
        self._arrays = dict(np.load(self.files[1]))
        self.shapes = {name: array.shape for name, array in sorted(self._arrays.items())}

    def read(self, variable: str) -> Any:
        return self._arrays[variable]

    @staticmethod
    def write(
        prefix: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Any]
    ) -> None:
        arrays = {name: np.array(read(name), np.float32, order="C") for name in sorted(shapes)}
        assert {name: array.shape for name, array in arrays.items()} == dict(shapes)
        with Path(f"{prefix}{DATA}").open("wb") as file:
            np.savez(file, **arrays)
        Path(f"{prefix}.index").write_text("\n".join(arrays), "utf-8")


@pytest.fixture(params=["stand-in", "tensorflow"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What writes and reads checkpoints: `write` and `Checkpoint`."""
    if request.param == "tensorflow":
        pytest.importorskip("tensorflow", reason="needs pip install 'lert-ds[tf]'")
    else:
        monkeypatch.setattr(to_folder, "Checkpoint", StandIn)
        monkeypatch.setattr(tensorflow_checkpoint, "Checkpoint", StandIn)
        monkeypatch.setattr(tensorflow_checkpoint, "write", StandIn.write)
    return tensorflow_checkpoint


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in alone: for what has nothing to do with TensorFlow."""
    monkeypatch.setattr(to_folder, "Checkpoint", StandIn)
    monkeypatch.setattr(tensorflow_checkpoint, "write", StandIn.write)
    return StandIn


def config_of(**changes: Any) -> LertConfig:
    tags = {task: list(tags) for task, tags in LTP_TAGS.items()}
    return LertConfig(**{**SIZES, "tag_sets": tags, **changes})


@pytest.fixture
def tiny_config() -> Callable[..., LertConfig]:
    """Changes → the configuration of a tiny LERT with LERT's own tags."""
    return config_of


@pytest.fixture
def write_checkpoint() -> Callable[..., dict[str, Any]]:
    """Write a checkpoint as its authors publish it, and return its variables.

    Writer, folder; parts to leave out, variables to add, name of the checkpoint, changes to what
    lert_config.json says.
    """

    def write(
        store: Any,
        folder: Path,
        *,
        without: tuple[str, ...] = (),
        more: Mapping[str, Any] | None = None,
        name: str = "lert_model.ckpt",
        says: Mapping[str, Any] | None = None,
        config: LertConfig | None = None,
        pieces: int = len(PIECES),
    ) -> dict[str, Any]:
        generator = np.random.default_rng(0)
        variables = {
            entry.variable: generator.standard_normal(entry.shape, dtype=np.float32)
            for entry in mapping.entries(config or config_of())
            if entry.part not in without
        }
        variables.update(more or {})
        folder.mkdir(parents=True, exist_ok=True)
        shapes = {key: value.shape for key, value in variables.items()}
        store.write(folder / name, shapes, lambda key: variables[key])
        tree = {**SIZES, "hidden_act": "gelu", "directionality": "bidi", **(says or {})}
        (folder / "lert_config.json").write_text(json.dumps(tree), "utf-8")
        vocabulary = "".join(f"{piece}\n" for piece in PIECES[:pieces])
        (folder / "vocab.txt").write_text(vocabulary, "utf-8")
        return variables

    return write
