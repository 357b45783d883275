"""Edge folders: of every kind of model, equal to PyTorch, whole or absent, and what is refused."""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertTokenizer

from lert_ds import model_dir, modeling_lert
from lert_ds.config import dump, load, parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError
from prune import export_onnx
from prune.export_onnx import FP32, INT8, REPORT, ExportConfig, export, open_graph, run_graph

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(0x4E00, 0x4E28))]
SHAPE: dict[str, Any] = {
    "vocab_size": len(PIECES),
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "id2label": {0: "no", 1: "yes", 2: "maybe"},
}
PRUNED: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_attention_heads": [3, 0, 1],
    "layer_intermediate_sizes": [40, 16, 0],
    "tag_sets": {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"]},
}


def write_model(folder: Path, cls: Any, **changes: Any) -> Path:
    torch.manual_seed(0)
    model = cls(LertConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():  # wide apart, so that a wrong answer shows
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    vocabulary = folder.parent / "vocabulary"
    vocabulary.mkdir(parents=True, exist_ok=True)
    (vocabulary / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    model_dir.save(model, vocabulary, folder)
    return folder


def settings(model: Path, output: Path, **changes: Any) -> ExportConfig:
    text = output.parent / "text.txt"
    text.write_text("\n".join("".join(PIECES[5 + k :: 3]) for k in range(20)), "utf-8")
    tree = {"model": str(model), "output": str(output), "text": str(text), **changes}
    return parse(ExportConfig, tree, "test")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    return write_model(folder / "model", modeling_lert.LertForPreTraining, **PRUNED)


@pytest.fixture(scope="module")
def edge(pruned: Path) -> tuple[Path, dict[str, Any]]:
    """A masked language model of uneven layers, filled at its [MASK]s alone."""
    output = pruned.with_name("edge")
    return output, export(settings(pruned, output, masked_positions=True))


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, len(PIECES), (3, 11), generator=generator)
    real = torch.ones_like(ids)
    real[1, 4:] = 0
    types = torch.zeros_like(ids)
    types[2, 5:] = 1
    return {"input_ids": ids, "attention_mask": real, "token_type_ids": types}


def same(found: Mapping[str, Any], name: str, wanted: torch.Tensor, real: Any = ...) -> None:
    np.testing.assert_allclose(found[name][real], wanted.numpy()[real], atol=2e-5, rtol=1e-4)


def test_folder_has_the_layout(edge: Any, pruned: Path) -> None:
    folder, report = edge
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    tokenizer = {"vocab.txt", "tokenizer.json", "tokenizer_config.json"}
    assert names == {FP32, INT8, REPORT, "config.json", *tokenizer}
    assert [path.name for path in folder.parent.glob(".*")] == []
    assert json.loads((folder / REPORT).read_text("utf-8")) == report
    told = BertConfig.from_pretrained(folder)
    assert told.architectures == ["BertForMaskedLM"]
    assert (told.model_type, told.vocab_size) == ("bert", len(PIECES))
    assert json.loads((folder / "config.json").read_text("utf-8"))["tag_sets"] == PRUNED["tag_sets"]
    assert "auto_map" not in (folder / "config.json").read_text("utf-8")
    assert BertTokenizer.from_pretrained(folder)("一")["input_ids"] == [2, 5, 3]


def test_report_tells_sizes_and_differences(edge: Any, pruned: Path) -> None:
    folder, report = edge
    assert report["head"] == "mlm"
    for name, most in ((FP32, 1e-4), (INT8, 0.2)):
        facts = report["files"][name]
        assert facts["bytes"] == (folder / name).stat().st_size
        assert set(facts["outputs"]) == {"logits", "pos_logits", "ner_logits"}
        for difference in facts["outputs"].values():
            assert 0 < difference["relative_padded"] <= difference["relative"] < most
            assert difference["agreement"] > 0.8
    exact = report["files"][FP32]["outputs"]["logits"]
    assert exact["agreement"] == 1.0
    assert exact["largest"] < 1e-4
    assert report["files"][INT8]["outputs"]["logits"]["largest"] > exact["largest"]
    assert report["weights_bytes"] == (pruned / "model.safetensors").stat().st_size
    assert report["config"]["masked_positions"] is True


@pytest.mark.parametrize("places", [[0, 12, 32], [7], [3, 3, 20, 21, 22]])
def test_graph_is_the_model_at_any_number_of_places(
    edge: Any, pruned: Path, places: list[int]
) -> None:
    folder, _ = edge
    model, _ = model_dir.load(pruned)
    given = {**inputs(), "masked_positions": torch.tensor(places)}
    with torch.inference_mode():
        wanted = model.eval()(**given)
    found = run_graph(open_graph(folder / FP32), given)
    same(found, "logits", wanted.logits)
    for task, logits in wanted.tag_logits.items():
        same(found, f"{task}_logits", logits)
    int8 = run_graph(open_graph(folder / INT8), given)["logits"]
    assert np.abs(int8 - wanted.logits.numpy()).max() < 0.5 * wanted.logits.std()


@pytest.mark.parametrize(
    ("name", "cls", "outputs"),
    [
        pytest.param(
            "encoder", "LertForPreTraining", ["last_hidden_state"], marks=pytest.mark.slow
        ),
        pytest.param("mlm", "LertForMaskedLM", ["logits"], marks=pytest.mark.slow),
        ("sequence_classification", "LertForSequenceClassification", ["logits"]),
        pytest.param(
            "token_classification", "LertForTokenClassification", ["logits"], marks=pytest.mark.slow
        ),
        pytest.param(
            "question_answering",
            "LertForQuestionAnswering",
            ["start_logits", "end_logits"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_head(tmp_path: Path, name: str, cls: str, outputs: list[str]) -> None:
    changes = {"id2label": {0: "start", 1: "end"}} if name == "question_answering" else {}
    folder = write_model(tmp_path / "model", getattr(modeling_lert, cls), **changes)
    head = "encoder" if name == "encoder" else "auto"
    report = export(settings(folder, tmp_path / "edge", head=head, int8=False, fuse=False))
    assert report["head"] == name
    assert list(report["files"]) == [FP32]
    assert (report["files"][FP32]["outputs"][outputs[0]]["agreement"] is None) == (
        name == "encoder"
    )
    loaded, _ = model_dir.load(folder, export_onnx.HEADS[report["head"]].lert)
    given = inputs()
    with torch.inference_mode():
        wanted = loaded.eval()(**given)
    found = run_graph(open_graph(tmp_path / "edge" / FP32), given)
    assert list(found) == outputs
    real = ... if name == "sequence_classification" else given["attention_mask"].bool().numpy()
    for output in outputs:
        same(found, output, wanted[output], real)
    edge = json.loads((tmp_path / "edge/config.json").read_text("utf-8"))
    assert edge["architectures"][0].startswith("Bert")
    assert list(edge["id2label"].values()) == list(
        changes.get("id2label", SHAPE["id2label"]).values()
    )


@pytest.mark.parametrize(
    ("changes", "outputs"), [({"tags": False}, ["logits"]), ({}, ["logits", "pos_logits"])]
)
def test_tags_where_asked_and_learnt(
    pruned: Path, tmp_path: Path, changes: dict[str, Any], outputs: list[str]
) -> None:
    # A head without weights: it has learnt nothing, and is left out.
    folder = shutil.copytree(pruned, tmp_path / "model")
    path = folder / "config.json"
    tree = json.loads(path.read_text("utf-8"))
    del tree["tag_sets"]["ner"]
    tree["tag_sets"]["dep"] = ["ATT", "WP"]
    path.write_text(json.dumps(tree), "utf-8")
    given = settings(folder, tmp_path / "edge", **changes)
    model = export_onnx.load_model(given, export_onnx.find_head(given))
    assert [f"{task}_logits" for task in model.config.tasks] == outputs[1:]


def broken(error: float) -> Any:
    def run(session: Any, given: Any) -> Any:
        return {name: value + error for name, value in run_graph(session, given).items()}

    return run


@pytest.fixture
def with_graph(edge: Any, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose graph is there already: exporting takes long."""
    graphs = {name: export_onnx.onnx_ir.load(edge[0] / name) for name in (FP32, INT8)}
    monkeypatch.setattr(export_onnx.onnx_graph, "to_onnx", lambda *_, **__: graphs[FP32])
    monkeypatch.setattr(export_onnx.onnx_graph, "quantize", lambda *_, **__: graphs[INT8])
    return pruned


def test_written_whole_or_not_at_all(
    with_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = settings(with_graph, tmp_path / "edge", masked_positions=True)
    with monkeypatch.context() as patch:
        patch.setattr(export_onnx, "run_graph", broken(1.0))
        with pytest.raises(ModelError, match=r"model\.onnx differs .* tolerance allows 0\.0001"):
            export(wish)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]
    export(wish)
    before = (tmp_path / "edge" / REPORT).read_bytes()
    with pytest.raises(ConfigError, match="holds a finished result"):
        export(wish)
    again = wish.model_copy(update={"overwrite": True})
    with monkeypatch.context() as patch:
        patch.setattr(export_onnx, "run_graph", broken(float("nan")))
        with pytest.raises(ModelError, match="differs from PyTorch by nan"):
            export(again)
    assert (tmp_path / "edge" / REPORT).read_bytes() == before
    (tmp_path / "edge/old").write_text("")
    export(again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edge", "text.txt"]
    assert not (tmp_path / "edge/old").exists()


def test_int8_has_its_own_tolerance(with_graph: Path, tmp_path: Path) -> None:
    wish = {"masked_positions": True, "tolerance_int8": 1e-6}
    with pytest.raises(ModelError, match=r"model_quantized\.onnx differs .* tolerance_int8 allows"):
        export(settings(with_graph, tmp_path / "edge", **wish))


def test_a_graph_that_ignores_the_mask_is_refused(
    with_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(session: Any, given: Any) -> Any:
        ones = torch.ones_like(given["attention_mask"])
        return run_graph(session, {**given, "attention_mask": ones})

    monkeypatch.setattr(export_onnx, "run_graph", blind)
    wish = {"masked_positions": True, "tolerance": 100, "tolerance_int8": 100}
    with pytest.raises(ModelError, match="ignores attention_mask"):
        export(settings(with_graph, tmp_path / "edge", **wish))


def test_other_folders_are_left_alone(pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds other files than an export's"):
        export(settings(pruned, pruned, overwrite=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="it is a file"):
        export(settings(pruned, tmp_path / "file", overwrite=True))


def test_heads_that_are_not_there(pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights for head = token_classification"):
        export(settings(pruned, tmp_path / "edge", head="token_classification"))
    folder = write_model(tmp_path / "model", modeling_lert.LertForSequenceClassification)
    with pytest.raises(ModelError, match=r"no weights for head = mlm \(cls\.predictions"):
        export(settings(folder, tmp_path / "edge", head="mlm"))
    with pytest.raises(ConfigError, match="for sequence_classification, which fills no"):
        export(settings(folder, tmp_path / "edge", masked_positions=True))
    path = folder / "config.json"
    path.write_text(path.read_text("utf-8").replace("LertForSeq", "LertForSpeech"), "utf-8")
    with pytest.raises(ModelError, match="say head= one of mlm, encoder"):
        export(settings(folder, tmp_path / "edge"))
    assert not (tmp_path / "edge").exists()


def test_too_large_for_a_file(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_onnx, "LARGEST_FILE_BYTES", 1000)
    with pytest.raises(ModelError, match=r"an \.onnx file holds 2"):
        export(settings(pruned, tmp_path / "edge"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": 23}, "opset = 23"),
        ({"head": "encoder", "masked_positions": True}, "a model for encoder fills no"),
        ({"int8": False, "reduce_range": True}, "reduce_range is of int8 weights"),
        ({"tolerance": 0}, "tolerance = 0"),
        ({"text": "/none"}, None),
    ],
)
def test_bad_configuration(
    pruned: Path, tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    if message is None:
        with pytest.raises(ConfigError, match="text = /none: there is no such file"):
            export(settings(pruned, tmp_path / "edge", **changes))
        return
    with pytest.raises(ConfigError, match=message):
        settings(pruned, tmp_path / "edge", **changes)


def test_command(
    with_graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    parser = argparse.ArgumentParser("lert-ds export")
    export_onnx.add_arguments(parser)
    for name in ("export-edge", "export-fill"):
        path = export_onnx.Path(export_onnx.__file__).parent / f"configs/{name}.toml"
        preset = load(ExportConfig, path)
        assert parse(ExportConfig, dump(preset), "record") == preset
    words = ["export-fill", f"model={with_graph}", f"output={tmp_path / 'edge'}"]
    export_onnx.run(parser.parse_args([*words, "--dry-run"]))
    out = capsys.readouterr().out
    assert '"masked_positions": true' in out
    parameters = sum(p.numel() for p in model_dir.load(with_graph)[0].parameters())
    assert f"{parameters:,}" in out
    assert not (tmp_path / "edge").exists()
    with caplog.at_level("INFO"):
        export_onnx.run(parser.parse_args(words))
    assert "model_quantized.onnx" in caplog.text
    assert json.loads((tmp_path / "edge" / REPORT).read_text("utf-8"))["head"] == "mlm"
