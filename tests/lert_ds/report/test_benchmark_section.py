"""A benchmark on the page: its table, its charts, escaped; and pages with and without runs."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lert_ds import cli
from lert_ds.errors import UserError
from lert_ds.report.benchmark_section import (
    Benchmark,
    benchmark_section,
    is_benchmark,
    read_benchmark,
)

EVIL = "</th><script>alert(1)</script>"


def latency(milliseconds: float, ratio: float) -> dict[str, float]:
    return {"median_ms": milliseconds, "ratio": ratio}


RECORD: dict[str, Any] = {
    "kind": "benchmark",
    "columns": [
        {"name": "teacher", "runtime": "PyTorch, fp32", "parameters": 4_000_000,
         "bytes": 16 * 2**20, "memory_bytes": 400 * 2**20, "held_out": {"mlm/loss": 5.25}},
        {"name": EVIL, "runtime": EVIL, "parameters": None, "bytes": 2 * 2**20,
         "memory_bytes": 100 * 2**20, "held_out": {"mlm/loss": 5.5, f"x{EVIL}": 0.5}},
    ],
    "cells": [
        {"threads": 1, "batch_size": 1, "length": 128,
         "columns": [latency(22.5, 1.0), latency(3.0, 7.5)]},
        {"threads": 1, "batch_size": 1, "length": 512, "columns": [latency(99.0, 1.0), None]},
        {"threads": 2, "batch_size": 1, "length": 128, "columns": [None, None]},
        {"threads": 1, "batch_size": 32, "length": 128, "columns": [None, None]},
    ],
    "machine": {"cpu": EVIL},
    "config": {"rounds": 5},
}  # fmt: skip


def write(folder: Path, record: Any = RECORD) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(record), "utf-8")
    return folder


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "valid", "step": 1, "mlm/loss": 9.0}\n')
    (folder / "summary.json").write_text("{}")
    return folder


def test_a_benchmark_is_told_from_a_run(tmp_path: Path) -> None:
    assert is_benchmark(write(tmp_path / "a"))
    assert not is_benchmark(write_run(tmp_path / "b"))
    assert not is_benchmark(write(tmp_path / "c", ["kind"]))
    (tmp_path / "c" / "summary.json").write_text("{")
    assert not is_benchmark(tmp_path / "c")
    assert not is_benchmark(tmp_path / "none")


def test_the_section_has_the_table_and_a_chart_for_size_and_each_length(tmp_path: Path) -> None:
    html = benchmark_section(read_benchmark(write(tmp_path / "a")))
    assert "<script" not in html
    assert '<td>16</td><td>2 <small class="dim">8.00×</small></td>' in html
    assert '<td>22.5</td><td>3 <small class="dim">7.50×</small></td>' in html
    assert html.count("<svg") == 3  # size, 128 and 512 on one thread
    assert html.count("<circle") == 2 + 2 + 1
    assert "Latency of 1 × 512, 1 thread, ms" in html
    assert "medians of 5 interleaved rounds" in html


def test_without_losses_there_is_no_chart(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    for column in record["columns"]:
        column["held_out"] = None
    html = benchmark_section(read_benchmark(write(tmp_path / "a", record)))
    assert "<svg" not in html
    assert "No held-out loss was measured, no task either" in html


@pytest.mark.parametrize(
    "change",
    [
        {"columns": []}, {"columns": [{}]}, {"columns": None}, {"cells": None}, {"cells": [{}]},
        {"cells": [{"threads": 1, "batch_size": 1, "length": 8, "columns": [None]}]},
        {"cells": [{"threads": "1", "batch_size": 1, "length": 8, "columns": [None] * 2}]},
    ],
)  # fmt: skip
def test_what_no_benchmark_writes_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"summary\.json: columns and cells are not"):
        read_benchmark(write(tmp_path / "a", {**RECORD, **change}))


def test_figures_that_are_none_are_left_out(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    record["columns"][0] |= {"bytes": "many", "parameters": True, "memory_bytes": float("inf")}
    record["cells"][0]["columns"] = [{"median_ms": -1.0, "ratio": None}, "fast"]
    html = benchmark_section(read_benchmark(write(tmp_path / "a", record)))
    assert html.count("<circle") == 1 + 0 + 1
    assert "Infinity" not in html


def test_the_command_takes_benchmarks_alone_and_beside_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, run = write(tmp_path / "edge"), write_run(tmp_path / "run")
    cli.main(["report", str(benchmark)])
    alone = (benchmark / "report.html").read_text("utf-8")
    assert "<title>edge</title>" in alone
    assert "1 benchmark ·" in alone
    assert "<script" not in alone  # nothing there that needs one
    both = tmp_path / "both.html"
    cli.main(["report", str(benchmark), str(run), "--output", str(both)])
    html = both.read_text("utf-8")
    assert "<title>run, edge</title>" in html
    assert html.count("<script") == 2
    assert "Benchmark edge" in html
    capsys.readouterr()
    cli.main(["report", str(benchmark), str(run), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told] == ["run", "edge"]
    assert told[1]["cells"] == RECORD["cells"]


def test_scores_of_a_task_are_rows_and_plotted_where_there_are_no_losses() -> None:
    record = copy.deepcopy(RECORD)
    record["task"] = {"title": "OCNLI", "metrics": ["accuracy"], "examples": {"dev": 2950}}
    for column, share in zip(record["columns"], (0.75, 0.7125), strict=True):
        column |= {"held_out": None, "task": {"dev": {"accuracy": share}}}
    html = benchmark_section(Benchmark("a", Path(), record))
    wanted = '<td>75.00</td><td>71.25 <small class="dim">-3.75</small></td>'
    assert f'<th scope="row">OCNLI dev accuracy, %</th>{wanted}' in html
    assert html.count("<svg") == 3
    assert "OCNLI dev accuracy, % over Size, MiB" in html


@pytest.mark.parametrize(
    "task", [None, [], {"examples": 1}, {"examples": {"dev": 1}, "metrics": "accuracy"},
             {"title": EVIL, "examples": {EVIL: 1}, "metrics": ["accuracy", 3]}],
)  # fmt: skip
def test_a_task_that_is_none_does_no_harm(task: Any) -> None:
    record = copy.deepcopy(RECORD) | {"task": task}
    record["columns"][0]["task"] = {"dev": "good", EVIL: {"accuracy": 0.5}}
    html = benchmark_section(Benchmark("a", Path(), record))
    assert "<script" not in html
