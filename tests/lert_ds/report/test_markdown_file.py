"""The Markdown file: the table of fine-tunings, then the benchmarks' own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lert_ds.errors import UserError
from lert_ds.report.benchmark_section import Benchmark
from lert_ds.report.finetune_results import read_finetune
from lert_ds.report.markdown_file import GENERATOR, TABLE, markdown


def test_both_kinds(tmp_path: Path, write_finetune: Callable[..., Path]) -> None:
    found = read_finetune(write_finetune(tmp_path / "a"))
    (tmp_path / TABLE).write_text("| | a |\n| :-- | --: |\n", "utf-8")
    text = markdown([found], [Benchmark("b_c", tmp_path, {})])
    assert text.startswith(f"{GENERATOR}\n")
    assert text.index("Fine-tuned here") < text.index("Benchmark b\\_c\n\n| | a |")


def test_a_benchmark_without_its_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"table\.md: the benchmark's table cannot be read"):
        markdown([], [Benchmark("b", tmp_path, {})])
