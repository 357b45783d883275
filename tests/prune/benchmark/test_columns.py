"""Columns: what a folder is, its size, its name; folders that are neither or do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lert_ds import model_dir
from lert_ds.errors import ConfigError, UserError
from prune.benchmark.columns import find_columns


def test_a_model_has_one_column_an_edge_folder_one_for_each_graph(
    tiny_model: Path, tiny_edge: Path
) -> None:
    model, fp32, int8 = find_columns([str(tiny_model), str(tiny_edge)], [], "bf16")
    assert [one.name for one in (model, fp32, int8)] == ["run", "edge fp32", "edge int8"]
    assert [one.runtime for one in (model, fp32, int8)] == [
        "PyTorch, bf16", "ONNX Runtime, fp32", "ONNX Runtime, int8",
    ]  # fmt: skip
    loaded, _ = model_dir.load(tiny_model)
    count = sum(parameter.numel() for parameter in loaded.parameters())
    assert model.parameters == fp32.parameters == int8.parameters == count
    assert model.bytes == (tiny_model / "model.safetensors").stat().st_size
    assert fp32.bytes == (tiny_edge / "onnx/model.onnx").stat().st_size
    assert int8.bytes == (tiny_edge / "onnx/model_quantized.onnx").stat().st_size
    assert {one.positions for one in (model, fp32, int8)} == {40}
    assert fp32.masked_positions
    assert int8.config.tag_sets == loaded.config.tag_sets


def test_weights_in_several_files_count_together(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")
    places = {name: f"model-{place}.safetensors" for name, place in zip("abc", "122", strict=True)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (column,) = find_columns([str(folder)], [], "fp32")
    assert column.bytes == 2 * size


def test_an_edge_folder_of_another_maker_has_no_report(tiny_edge: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_edge, tmp_path / "other")
    (folder / "report.json").unlink()
    (folder / "onnx/model.onnx").unlink()
    (folder / "onnx/model_quantized.onnx_data").write_bytes(b"12345")
    (column,) = find_columns([str(folder)], ["theirs"], "fp32")
    assert (column.name, column.parameters) == ("theirs int8", None)
    assert column.bytes == 5 + (folder / "onnx/model_quantized.onnx").stat().st_size


def test_names_are_the_shortest_ends_that_tell_apart(tiny_model: Path, tmp_path: Path) -> None:
    places = [tmp_path / place for place in ("a/run/model", "b/run/model", "b/other")]
    for place in places:
        shutil.copytree(tiny_model, place)
    sources = [str(place) for place in places]
    assert [c.name for c in find_columns(sources, [], "fp32")] == ["a/run", "b/run", "b/other"]
    assert [c.name for c in find_columns(sources[1:], [], "fp32")] == ["run", "other"]
    given = find_columns([sources[0], sources[0]], ["once", " once  more "], "fp32")
    assert [column.name for column in given] == ["once", "once more"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "names has 1 for 2 models"),
        (["a", "a"], "names: a is there twice"),
        (["a", " "], "names: one of them is empty"),
        ([], "is there twice; name it once"),
    ],
)
def test_names_that_do_not_fit(tiny_model: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_columns([str(tiny_model)] * 2, names, "fp32")


def test_a_name_that_is_also_a_graphs(tiny_model: Path, tiny_edge: Path) -> None:
    with pytest.raises(ConfigError, match="two columns are called e int8"):
        find_columns([str(tiny_model), str(tiny_edge)], ["e int8", "e"], "fp32")


def _without_graphs(folder: Path) -> None:
    for path in (folder / "onnx").iterdir():
        path.unlink()


def _set(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**tree, key: value}), "utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_graphs, "an edge folder without a graph"),
        (lambda folder: shutil.rmtree(folder / "onnx"), "an edge folder without a graph"),
        (_set("vocab_size", 46), "vocab_size makes logits 46 wide"),
        (_set("architectures", ["BertModel"]), "."),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "report.json").write_text("{"), "not a report"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_edge_folders_that_cannot_be_used(
    tiny_edge: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(tiny_edge, tmp_path / "edge")
    change(folder)
    with pytest.raises(UserError, match=message) as told:
        find_columns([str(folder)], [], "fp32")
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)


def test_folders_that_are_no_models(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name model folders and edge folders"):
        find_columns([], [], "fp32")
    with pytest.raises(UserError, match=r"neither a model folder .* nor an edge folder"):
        find_columns([str(tmp_path)], [], "fp32")
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="a model folder without weights"):
        find_columns([str(folder)], [], "fp32")
    _set("vocab_size", 44)(tiny := shutil.copytree(tiny_model, tmp_path / "smaller"))
    with pytest.raises(UserError, match="its tokenizer has 45 pieces"):
        find_columns([str(tiny)], [], "fp32")


def test_a_fine_tuned_model_has_its_head_and_no_masks(
    fine_tuned: Callable[[str], tuple[Path, Path]],
) -> None:
    folder, edge = fine_tuned("peopledaily")
    columns = find_columns([str(folder), str(edge)], [], "fp32")
    assert [column.head for column in columns] == ["token_classification"] * 3
    assert {column.scores for column in columns} == {"every token's tag"}
    assert len({column.parameters for column in columns}) == 1
    assert columns[0].config.id2label == columns[1].config.id2label
    assert json.loads(columns[1].command[-1])["head"] == "token_classification"


def test_where_scores_are_computed(tiny_model: Path, tiny_edge: Path) -> None:
    columns = find_columns([str(tiny_model), str(tiny_edge)], [], "fp32")
    assert [column.head for column in columns] == ["mlm"] * 3
    assert {column.scores for column in columns} == {"at the [MASK]s"}
