"""Edge folders: of every kind of model, equal to PyTorch, whole or absent, and what is refused."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import tokenizers
import torch
from transformers import BertConfig, BertTokenizer

from lert_ds import model_dir, modeling_lert, tokenizer_files
from lert_ds.config import dump, load, parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.edge.edge_model import EdgeModel
from lert_ds.edge.folder import GRAPHS, REPORT
from lert_ds.errors import ConfigError, ModelError
from prune.export import onnx_graph
from prune.export import run as export_onnx
from prune.export.export_config import ExportConfig
from prune.export.run import export
from prune.export.source import HEADS, find_head, load_model

FP32, INT8 = GRAPHS["fp32"], GRAPHS["int8"]
run_graph = EdgeModel.run

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


def arrays(given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in given.items()}


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


def test_the_tokenizer_file_alone_is_enough(pruned: Path, tmp_path: Path) -> None:
    # transformers goes by tokenizer_config.json, others read tokenizer.json alone.
    folder = shutil.copytree(pruned, tmp_path / "model")
    settings_path = folder / tokenizer_files.SETTINGS
    tree = json.loads(settings_path.read_text("utf-8"))
    pieces = [*PIECES[:-1], "Go"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    made = folder / tokenizer_files.TOKENIZER
    made.write_text(made.read_text("utf-8").replace(f'"{PIECES[-1]}"', '"Go"'), "utf-8")
    settings_path.write_text(json.dumps({**tree, "do_lower_case": False}), "utf-8")
    export_onnx.write_tokenizer(folder, tmp_path, len(PIECES))
    wanted = BertTokenizer.from_pretrained(folder)("Go一")["input_ids"]
    assert wanted == [2, len(PIECES) - 1, 5, 3]
    assert tokenizers.Tokenizer.from_file(str(tmp_path / made.name)).encode("Go一").ids == wanted


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
    found = EdgeModel(folder, "fp32").run(arrays(given))
    same(found, "logits", wanted.logits)
    for task, logits in wanted.tag_logits.items():
        same(found, f"{task}_logits", logits)
    int8 = EdgeModel(folder, "int8").run(arrays(given))["logits"]
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
    loaded, _ = model_dir.load(folder, HEADS[report["head"]].lert)
    given = inputs()
    with torch.inference_mode():
        wanted = loaded.eval()(**given)
    found = EdgeModel(tmp_path / "edge").run(arrays(given))
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
    model = load_model(given, find_head(given))
    assert [f"{task}_logits" for task in model.config.tasks] == outputs[1:]


def broken(error: float) -> Any:
    def run(model: EdgeModel, given: Any) -> Any:
        return {name: value + error for name, value in run_graph(model, given).items()}

    return run


@pytest.fixture
def with_graph(edge: Any, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose graph is there already: exporting takes long."""
    graphs = {name: onnx_ir.load(edge[0] / name) for name in (FP32, INT8)}
    monkeypatch.setattr(onnx_graph, "to_onnx", lambda *_, **__: graphs[FP32])
    monkeypatch.setattr(onnx_graph, "quantize", lambda *_, **__: graphs[INT8])
    return pruned


def test_written_whole_or_not_at_all(
    with_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = settings(with_graph, tmp_path / "edge", masked_positions=True)
    with monkeypatch.context() as patch:
        patch.setattr(EdgeModel, "run", broken(1.0))
        with pytest.raises(ModelError, match=r"model\.onnx differs .* tolerance allows 0\.0001"):
            export(wish)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]
    export(wish)
    before = (tmp_path / "edge" / REPORT).read_bytes()
    with pytest.raises(ConfigError, match="holds a finished result"):
        export(wish)
    again = wish.model_copy(update={"overwrite": True})
    with monkeypatch.context() as patch:
        patch.setattr(EdgeModel, "run", broken(float("nan")))
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
    def blind(model: EdgeModel, given: Any) -> Any:
        ones = np.ones_like(given["attention_mask"])
        return run_graph(model, {**given, "attention_mask": ones})

    monkeypatch.setattr(EdgeModel, "run", blind)
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


def test_no_text_to_compare_on(pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text = /none: there is no such file"):
        export(settings(pruned, tmp_path / "edge", text="/none"))


def test_command(
    with_graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    parser = argparse.ArgumentParser("lert-ds export")
    export_onnx.add_arguments(parser)
    for name in ("export-edge", "export-int8"):
        path = Path(export_onnx.__file__).parents[1] / f"configs/{name}.toml"
        preset = load(ExportConfig, path)
        assert parse(ExportConfig, dump(preset), "record") == preset
    words = ["export-int8", f"model={with_graph}", f"output={tmp_path / 'edge'}"]
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


def test_predict_needs_no_pytorch_and_says_the_same(tiny_model: Path, tiny_edge: Path) -> None:
    texts = ["一[MASK]丁", "[MASK]七[MASK]万"]
    without = "for name in ('torch', 'transformers', 'deepspeed'):\n    sys.modules[name] = None"

    def predict(folder: Path, first: str, *options: str) -> list[dict[str, Any]]:
        program = f"import sys\n{first}\nfrom lert_ds import cli\ncli.main(sys.argv[1:])"
        words = ["predict", str(folder), *texts, "--json", *options]
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def flat(answers: list[dict[str, Any]]) -> tuple[list[str], list[float]]:
        candidates = [
            candidate
            for answer in answers
            for mask in answer["masks"]
            for candidate in [*mask["pieces"], *mask["tags"].values()]
        ]
        return [c["name"] for c in candidates], [c["probability"] for c in candidates]

    names, shares = flat(predict(tiny_model, ""))
    assert len(names) == 3 * (5 + 2)
    found, exact = flat(predict(tiny_edge, without, "--graph=fp32"))
    assert found == names
    np.testing.assert_allclose(exact, shares, rtol=1e-4)
    _, near = flat(predict(tiny_edge, without))
    np.testing.assert_allclose(near, shares, atol=0.05)


def test_an_export_that_costs_accuracy_is_refused(
    tiny_model: Path,
    tiny_edge: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = {name: onnx_ir.load(tiny_edge / file) for name, file in GRAPHS.items()}
    monkeypatch.setattr(onnx_graph, "to_onnx", lambda *_, **__: graphs["fp32"])
    monkeypatch.setattr(onnx_graph, "quantize", lambda *_, **__: graphs["int8"])
    accuracy = {"corpus": str(tiny_corpus), "instances": 20, "largest_drop": 0.2}
    wish = {"masked_positions": True, "accuracy": accuracy, "tolerance_int8": 100}
    report = export(settings(tiny_model, tmp_path / "edge", **wish))
    assert report["accuracy"].keys() == {"mlm/accuracy", "pos/accuracy", "dep/accuracy"}
    assert report["files"][FP32]["accuracy"] == report["accuracy"]
    assert report["files"][INT8]["accuracy"] != {}

    assert max(report["accuracy"].values()) > 0

    def wrong(model: EdgeModel, given: Any) -> Any:
        found = run_graph(model, given)
        if model.graph == "int8" and given["input_ids"].shape[1] == 32:  # an instance's length
            # One class more, which is never right.
            return {
                name: np.pad(of, ((0, 0), (0, 1)), constant_values=99) for name, of in found.items()
            }
        return found

    monkeypatch.setattr(EdgeModel, "run", wrong)
    wish["accuracy"] = {**accuracy, "largest_drop": 0}
    with pytest.raises(ModelError, match=r"/accuracy of onnx/model_quantized\.onnx is 0\.0000"):
        export(settings(tiny_model, tmp_path / "other", **wish))
    assert not (tmp_path / "other").exists()
