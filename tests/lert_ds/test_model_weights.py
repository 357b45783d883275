"""Weights are tensors of the folder's own files, whatever the folder says."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lert_ds.errors import ModelError
from lert_ds.model_weights import WeightFiles, files_of, read_weights

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Boom:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "model-2.safetensors")
    torch.save({"c": torch.ones(1)}, folder / "part-1.bin")
    save_file({"secret": torch.ones(1)}, tmp_path / "secret.safetensors")
    return folder


def write_index(folder: Path, name: str, weight_map: Any) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")


def test_files_of_an_index_are_joined(folder: Path) -> None:
    write_index(folder, SAFE_INDEX, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    found = read_weights(folder, SAFE_INDEX)
    assert found.keys() == {"a", "b"}
    assert found["b"].shape == (3,)
    write_index(folder, PICKLE_INDEX, {"c": "part-1.bin"})
    assert read_weights(folder, PICKLE_INDEX).keys() == {"c"}


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "{outside}", "x/../../secret.safetensors"]
)
def test_an_index_stays_in_its_folder(folder: Path, place: str) -> None:
    name = place.format(outside=folder.parent / "secret.safetensors")
    write_index(folder, SAFE_INDEX, {"a": "model-1.safetensors", "secret": name})
    with pytest.raises(ModelError, match=r"index\.json: .*which leaves the folder"):
        read_weights(folder, SAFE_INDEX)


def test_an_index_of_safetensors_reads_no_pickle(folder: Path) -> None:
    write_index(folder, SAFE_INDEX, {"c": "part-1.bin"})
    with pytest.raises(ModelError, match=r"names 'part-1\.bin', which is no \.safetensors file"):
        read_weights(folder, SAFE_INDEX)


@pytest.mark.parametrize("tree", [[], {}, {"weight_map": 3}, {"weight_map": ["a"]}, "{"])
def test_an_index_that_is_none(folder: Path, tree: Any) -> None:
    (folder / SAFE_INDEX).write_text(tree if isinstance(tree, str) else json.dumps(tree), "utf-8")
    with pytest.raises(ModelError, match=r"index\.json: no index of weights"):
        read_weights(folder, SAFE_INDEX)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_gives_tensors_and_runs_nothing(folder: Path) -> None:
    trace = folder / "trace"
    torch.save({"a": torch.ones(1), "b": Boom(trace)}, folder / PICKLE)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: its weights cannot be read"):
        read_weights(folder, PICKLE)
    (folder / PICKLE).write_bytes(pickle.dumps(Boom(trace)))
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(folder, PICKLE)
    assert not trace.exists()


def test_what_is_no_table_of_tensors_is_refused(folder: Path) -> None:
    for content in ([torch.ones(1)], {"a": 3}, {"model": {"a": torch.ones(1)}}):
        torch.save(content, folder / PICKLE)
        with pytest.raises(ModelError, match="no table of tensors"):
            read_weights(folder, PICKLE)


@pytest.mark.parametrize(
    ("index", "weight_map"),
    [
        (SAFE_INDEX, {"a": "model-1.safetensors", "b": "model-2.safetensors"}),
        (PICKLE_INDEX, {"c": "part-1.bin"}),
    ],
)
def test_one_by_one_they_are_the_same(folder: Path, index: str, weight_map: Any) -> None:
    write_index(folder, index, weight_map)
    files, wanted = WeightFiles(folder, index), read_weights(folder, index)
    assert files.shapes == {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    for name, tensor in wanted.items():
        assert torch.equal(files.read(name), tensor)
    assert files_of(folder, index) == sorted({folder / name for name in weight_map.values()})


def test_one_by_one_a_damaged_file_is_named(folder: Path) -> None:
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model-1\.safetensors: its weights cannot be read"):
        WeightFiles(folder, path.name)
    with pytest.raises(ModelError, match=r"gone\.safetensors: its weights cannot be read"):
        WeightFiles(folder, "gone.safetensors")
