"""The command: what it writes, whole or not at all, and what it refuses before it measures."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds import cli
from lert_ds.config import dump, load, parse
from lert_ds.data.shards import HELD_OUT
from lert_ds.errors import ConfigError, UserError
from prune.benchmark import run as benchmark
from prune.benchmark.run import SUMMARY, TABLE, BenchmarkConfig
from prune.benchmark.table import markdown
from prune.benchmark.turns import Cell

SMALL = {"batch_sizes": [1, 2], "lengths": [8, 64], "threads": [1], "rounds": 2, "seconds": 0.001}


def settings(models: list[Path], output: Path, **changes: Any) -> BenchmarkConfig:
    tree = {"models": list(map(str, models)), "output": str(output), **SMALL, **changes}
    return parse(BenchmarkConfig, tree, "test")


@pytest.fixture(scope="module")
def measured(
    tiny_model: Path, tiny_edge: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("benchmark") / "out"
    wish = settings([tiny_model, tiny_edge], output, corpus_valid=str(tiny_corpus / HELD_OUT))
    return output, benchmark.benchmark(wish)


def test_the_record_has_every_figure(
    measured: tuple[Path, dict[str, Any]], tiny_model: Path, tiny_edge: Path
) -> None:
    output, record = measured
    assert sorted(path.name for path in output.iterdir()) == [SUMMARY, TABLE]
    assert json.loads((output / SUMMARY).read_text("utf-8")) == record
    assert (output / TABLE).read_text("utf-8") == markdown(record)
    assert record["kind"] == "benchmark"
    assert [column["name"] for column in record["columns"]] == ["run", "edge fp32", "edge int8"]
    assert [column["graph"] for column in record["columns"]] == [None, "fp32", "int8"]
    torch_memory, *edge_memory = (column["memory_bytes"] for column in record["columns"])
    assert all(20 * 2**20 < memory < torch_memory for memory in edge_memory)
    assert all(column["masked_positions"] for column in record["columns"])
    losses = [column["held_out"]["mlm/loss"] for column in record["columns"]]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert [(c["batch_size"], c["length"]) for c in record["cells"]] == [
        (1, 8), (1, 64), (2, 8), (2, 64),
    ]  # fmt: skip
    for cell in record["cells"]:
        if cell["length"] == 64:  # the models have 40 positions
            assert cell["columns"] == [None] * 3
            continue
        first, *others = cell["columns"]
        assert (first["ratio"], first["ratio_range"]) == (1, [1, 1])
        for found in (first, *others):
            assert 0 < found["median_ms"] <= found["p95_ms"]
            assert found["ratio_range"][0] <= found["ratio"] <= found["ratio_range"][1]
            assert found["calls"] >= 2
    assert record["held_out"]["instances"] == 13
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["onnxruntime"]
    assert record["config"]["models"] == [str(tiny_model), str(tiny_edge)]


def test_a_finished_one_is_replaced_when_asked_alone(
    measured: tuple[Path, dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    output, _ = measured
    before = (output / SUMMARY).read_bytes()
    with pytest.raises(ConfigError, match="holds a finished result"):
        benchmark.benchmark(settings([tiny_model], output))
    assert (output / SUMMARY).read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files than a benchmark's \(notes.txt\)"):
        benchmark.benchmark(settings([tiny_model], tmp_path, overwrite=True))


def test_interrupted_it_leaves_what_was_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / SUMMARY).write_text("{}")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(settings([tiny_model], output, overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / SUMMARY).read_text() == "{}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models is empty"),
        ({"lengths": [2]}, "lengths: 2 has no room"),
        ({"lengths": [8, 8]}, r"lengths = \[8, 8\]: name each once"),
        ({"batch_sizes": [0]}, "batch_sizes.0 = 0"),
        ({"threads": []}, "threads = "),
        ({"rounds": 0}, "rounds = 0"),
        ({"seconds": 0}, "seconds = 0"),
        ({"masked_share": 1.5}, "masked_share = 1.5"),
        ({"instances": 0}, "instances = 0"),
        ({"precision": "fp16"}, "precision"),
        ({"names": ["a", "b"]}, "names has 2 for 1 models"),
        ({"text": "/none.txt"}, "text = /none.txt: there is no such file"),
        ({"corpus_valid": "/none"}, "/none: no such corpus folder"),
        ({"models": ["/none/model"]}, "/none/model: there is no such model folder"),
    ],
)
def test_bad_configurations_are_told_before_anything_is_measured(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(benchmark, "working", None)
    changes = dict(changes)
    with pytest.raises(UserError, match=message) as told:
        benchmark.benchmark(
            settings(changes.pop("models", [tiny_model]), tmp_path / "out", **changes)
        )
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_cells_vary_the_length_first() -> None:
    wish = settings([Path("x")], Path("y"), threads=[2, 1], lengths=[8, 9], batch_sizes=[4])
    assert wish.cells() == [Cell(2, 4, 8), Cell(2, 4, 9), Cell(1, 4, 8), Cell(1, 4, 9)]


def test_presets_load() -> None:
    for name in ("benchmark-quickstart", "benchmark-edge"):
        preset = load(BenchmarkConfig, Path(benchmark.__file__).parents[1] / f"configs/{name}.toml")
        assert parse(BenchmarkConfig, dump(preset), "record") == preset


def test_the_command(
    measured: tuple[Path, dict[str, Any]],
    tiny_edge: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {**SMALL, "models": str(tiny_edge), "corpus_valid": [], "batch_sizes": [1]}
    words = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    words += [f"output={tmp_path / 'out'}", "lengths=[8]", "instances=16"]
    cli.main(["benchmark", "benchmark-quickstart", "--dry-run", *words])
    printed = capsys.readouterr().out
    assert '"rounds": 2' in printed
    assert "edge int8  ONNX Runtime, int8," in printed
    assert "1 measurements of 2 columns in 2 rounds: at least 0 s" in printed
    assert "corpus_valid = []: no losses" in printed
    assert not (tmp_path / "out").exists()
    asked = []
    monkeypatch.setattr(benchmark, "benchmark", lambda wish: asked.append(wish) or measured[1])
    parser = argparse.ArgumentParser("lert-ds benchmark")
    benchmark.add_arguments(parser)
    benchmark.run(parser.parse_args(["benchmark-quickstart", *words]))
    assert [wish.models for wish in asked] == [(str(tiny_edge),)]
    assert capsys.readouterr().out == (measured[0] / TABLE).read_text("utf-8")


def test_what_a_worker_refuses_is_one_sentence(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"broken/model\.safetensors: its weights cannot be read"):
        benchmark.benchmark(settings([broken], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capfd.readouterr().err


def test_fine_tuned_models_are_timed_and_judged_on_their_task(
    fine_tuned: Callable[[str], tuple[Path, Path]], dev_files: Path, tmp_path: Path
) -> None:
    model, edge = fine_tuned("cmrc2018")
    task = {"name": "cmrc2018", "data": str(dev_files), "max_length": 32, "stride": 8}
    changes = {"names": ["teacher", "small"], "batch_sizes": [2], "lengths": [8], "task": task}
    output = tmp_path / "out"
    record = benchmark.benchmark(settings([model, edge], output, **changes))
    assert [column["head"] for column in record["columns"]] == ["question_answering"] * 3
    assert not any(column["masked_positions"] for column in record["columns"])
    assert all(found["median_ms"] > 0 for found in record["cells"][0]["columns"])
    assert record["task"]["examples"] == {"dev": 40}
    first, fp32, int8 = (column["task"]["dev"] for column in record["columns"])
    assert fp32 == first
    rows = (output / TABLE).read_text("utf-8").splitlines()
    (row,) = (line for line in rows if line.startswith("| CMRC 2018 dev EM "))
    em = 100 * first["em"]
    shown = [cell.strip() for cell in row.strip("|").split("|")[1:]]
    wanted = 100 * int8["em"]
    assert shown == [f"{em:.2f}", f"{em:.2f} (+0.00)", f"{wanted:.2f} ({wanted - em:+.2f})"]
    assert not any("MASK" in line for line in rows)
    page = tmp_path / "page.html"
    cli.main(["report", str(output), "--output", str(page)])
    html = page.read_text("utf-8")
    assert "CMRC 2018 dev F1, %" in html
    assert "<svg" in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_valid": "c"}, "corpus_valid: .* is a model for sequence_classification"),
        ({"task": {"name": "tnews"}}, "its classes are entailment, .* those of TNEWS"),
        ({"task": {"name": "msra"}}, "is a model for sequence_classification, and this task is"),
        ({"task": {"name": "ocnly"}}, "ocnly: no such task .*did you mean ocnli"),
        ({"task": {"name": "ocnli", "data": "/none"}}, "task.data = /none: there is no such"),
    ],
)
def test_a_task_that_does_not_fit_is_told_before_anything_is_measured(
    fine_tuned: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(benchmark, "working", None)
    with pytest.raises(UserError, match=message) as told:
        benchmark.benchmark(settings([fine_tuned("ocnli")[0]], tmp_path / "out", **changes))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_task_takes_the_place_of_a_corpus_and_models_of_two_kinds_are_refused(
    fine_tuned: Callable[[str], tuple[Path, Path]], tiny_model: Path, tmp_path: Path
) -> None:
    words = {"corpus_valid": "none/there", "task": {"name": "ocnli"}}  # as a preset may have it
    both = settings([fine_tuned("ocnli")[0]], tmp_path / "out", **words)
    told = "\n".join(benchmark._explain(both, benchmark._find_columns(both)))
    assert "task ocnli: every column is judged on its dev and test files; corpus_valid is" in told
    with pytest.raises(ConfigError, match="which take other times"):
        benchmark.benchmark(settings([tiny_model, fine_tuned("ocnli")[0]], tmp_path / "out"))
