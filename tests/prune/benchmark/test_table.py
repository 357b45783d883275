"""The table: every measure a row, ratios against the first column, what is missing said once."""

import copy
from typing import Any

from prune.benchmark.table import cell_name, markdown


def latency(milliseconds: float, ratio: float | None) -> dict[str, Any]:
    return {
        "median_ms": milliseconds, "p95_ms": 2 * milliseconds, "tokens_per_second": 12_345.6,
        "calls": 9, "ratio": ratio, "ratio_range": None,
    }  # fmt: skip


RECORD: dict[str, Any] = {
    "columns": [
        {
            "name": "first", "runtime": "PyTorch, fp32", "head": "mlm", "positions": 512,
            "scores": "at the [MASK]s", "task": None,
            "parameters": 4_000_000, "bytes": 16 * 2**20, "memory_bytes": 400 * 2**20,
            "held_out": {"mlm/loss": 5.25, "pos/accuracy": 0.5, "mlm/accuracy": 0.25,
                         "pos/loss": 2.0, "mlm/unknown_share": 0.0},
        },
        {
            "name": "a|b 中", "runtime": "ONNX Runtime, int8", "head": "mlm",
            "scores": "everywhere", "task": None,
            "positions": 128, "parameters": None, "bytes": 2 * 2**20, "memory_bytes": 100 * 2**20,
            "held_out": {"mlm/loss": 5.5, "mlm/accuracy": 0.2, "mlm/unknown_share": 0.125},
        },
    ],
    "cells": [
        {"threads": 1, "batch_size": 1, "length": 128,
         "columns": [latency(22.5, 1.0), latency(3.125, 7.4)]},
        {"threads": 2, "batch_size": 32, "length": 512, "columns": [latency(1234.5, 1.0), None]},
    ],
    "held_out": {"corpus": ["c"], "instances": 1024, "length": 128},
    "task": None,
    "machine": {"cpu": "A processor"},
    "config": {"masked_share": 0.15, "rounds": 5},
}  # fmt: skip


def rows(record: dict[str, Any]) -> dict[str, list[str]]:
    lines = markdown(record).split("\n\n")[0].splitlines()
    cells = [
        [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines
    ]
    return {name: values for name, *values in cells}


def test_rows_columns_and_ratios() -> None:
    found = rows(RECORD)
    assert found[""] == ["first", "a¦b 中"]
    assert found["scores"] == ["at the [MASK]s", "everywhere"]
    assert found["parameters"] == ["4,000,000", "—"]
    assert found["size"] == ["16.0 MiB", "2.00 MiB (8.00×)"]
    assert found["memory, peak"] == ["400 MiB", "100 MiB (4.00×)"]
    assert found["latency 1 × 128, 1 thread"] == ["22.5 ms", "3.12 ms (7.40×)"]
    assert found["latency 32 × 512, 2 threads"] == ["1,234 ms", "—"]
    assert found["p95 1 × 128, 1 thread"] == ["45.0 ms", "6.25 ms"]
    assert found["tokens/s 1 × 128, 1 thread"] == ["12,346", "12,346"]
    assert list(found)[-4:] == [
        "held-out MLM loss", "held-out MLM accuracy", "held-out MLM unknown share",
        "held-out pos accuracy",
    ]  # fmt: skip
    assert found["held-out MLM loss"] == ["5.2500", "5.5000"]
    assert found["held-out pos accuracy"] == ["50.00 %", "—"]


def test_it_is_aligned_markdown() -> None:
    table, notes = markdown(RECORD).split("\n\n")
    lines = table.splitlines()
    assert {line.count(" | ") for line in lines} == {2}
    assert len({len(line) for line in lines if "中" not in line}) == 1
    assert lines[1].startswith("| :--")
    assert "5 interleaved rounds" in notes
    assert "15 % of the pieces" in notes
    assert notes.count("more tokens than the model has positions") == 1
    assert "(a|b 中 128)" in notes
    assert "1,024 instances of 128 tokens" in notes


def test_without_a_corpus_nothing_is_said_of_it() -> None:
    record = copy.deepcopy(RECORD)
    record["held_out"] = None
    for column in record["columns"]:
        column["held_out"] = None
    assert "eld" not in markdown(record)


def test_a_first_column_that_is_too_short_gives_no_ratio() -> None:
    record = copy.deepcopy(RECORD)
    record["cells"][0]["columns"] = [None, latency(3.0, None)]
    assert rows(record)["latency 1 × 128, 1 thread"] == ["—", "3.00 ms"]


def test_the_name_of_a_cell() -> None:
    assert cell_name({"threads": 2, "batch_size": 1, "length": 8}) == "1 × 8, 2 threads"


def test_a_name_is_shown_and_no_html() -> None:
    record = copy.deepcopy(RECORD)
    record["columns"][1]["name"] = "<script>&|"
    assert "| &lt;script>&amp;\\| |" in " ".join(markdown(record).split("\n")[0].split())


def test_a_task_has_a_row_for_each_metric_and_points_from_the_first() -> None:
    record = copy.deepcopy(RECORD)
    record["task"] = {
        "name": "cmrc2018", "title": "CMRC 2018", "metrics": ["em", "f1"],
        "examples": {"dev": 3219, "test": 10},
    }  # fmt: skip
    for column, em in zip(record["columns"], (0.6921, 0.68), strict=True):
        scores = {"em": em, "f1": 0.875, "average": 0.7}
        column |= {"head": "question_answering", "held_out": None}
        column["task"] = {"dev": scores, "test": scores}
    record["held_out"] = None
    found = rows(record)
    assert list(found)[-4:] == [
        "CMRC 2018 dev EM", "CMRC 2018 dev F1", "CMRC 2018 test EM", "CMRC 2018 test F1",
    ]  # fmt: skip
    assert found["CMRC 2018 dev EM"] == ["69.21", "68.00 (-1.21)"]
    assert found["CMRC 2018 dev F1"] == ["87.50", "87.50 (+0.00)"]
    notes = markdown(record).split("\n\n")[1]
    assert "on 3,219 dev and 10 test examples; in brackets the points from first." in notes
    assert "[MASK]" not in notes
