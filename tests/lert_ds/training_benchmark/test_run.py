import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds.training_benchmark.run import table
from lert_ds.training_benchmark.steps import PARTS

TINY = [
    "architecture.layers=2", "architecture.hidden_size=32", "architecture.heads=2",
    "architecture.intermediate_size=64", "architecture.positions=32",
    "train.batch_size=8", "train.micro_batch_size=2", "train.data_workers=0",
    "deepspeed=ds_configs/zero0_fp32.json",
]  # fmt: skip


@pytest.fixture
def measured(
    tmp_path: Path, command_line: Callable[..., str]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Run the command in this process; returns its figures and what it printed."""

    def run(*words: str) -> tuple[dict[str, Any], str]:
        written = tmp_path / "deep/result.json"
        printed = command_line(
            ["benchmark", "pretrain", "pretrain-small", f"output={tmp_path / 'run'}", *TINY,
             "--steps", "2", "--warm-up", "1", "--json", str(written), *words], 0,
        )  # fmt: skip
        return json.loads(written.read_text("utf-8")), printed

    return run


def test_a_step_is_taken_apart(
    measured: Callable[..., tuple[dict[str, Any], str]], tiny_corpus: Path, tmp_path: Path
) -> None:
    result, printed = measured(f"corpus={tiny_corpus}", "--trace", str(tmp_path / "trace.json"))
    assert result["data"] == "corpus"
    assert (result["batch_size"], result["micro_batch_size"], result["length"]) == (8, 2, 32)
    assert result["part_seconds"].keys() == set(PARTS)
    assert len(result["step_seconds"]["all"]) == 2
    # Four micro-batches of two instances each: the parts are of the whole step.
    for seconds in result["step_seconds"]["all"]:
        assert sum(result["part_seconds"].values()) <= 3 * seconds
    step = result["step_seconds"]["median"]
    assert result["tokens_per_second"] == pytest.approx(8 * 32 / step)
    assert result["instances_per_second"] == pytest.approx(8 / step)
    rate = result["flops_per_token"] * 8 * 32 / step
    assert result["flops_per_second"] == pytest.approx(rate)
    assert result["mfu"] == pytest.approx(rate / result["matrix_flops_per_second"])
    assert sum(result["operation_shares"].values()) == pytest.approx(1)
    assert {"matrix products", "attention", "optimizer"} <= result["operation_shares"].keys()
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    for word in ("data wait", "backward", "matrix products", "tokens a second", "peak memory"):
        assert word in printed
    assert not (tmp_path / "run").exists()


def test_without_a_corpus_random_instances_stand_for_it(
    measured: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    result, printed = measured("corpus=nowhere", "--largest", "kernels.attention=plain")
    assert result["data"] == "synthetic"
    assert "synthetic data" in printed
    assert result["kernels"]["attention"] == "plain"
    assert result["largest_micro_batch"] >= 2


def test_a_wrong_key_is_told(command_line: Callable[..., str]) -> None:
    arguments = ["benchmark", "pretrain", "pretrain-small", "kernels.attention=quick"]
    assert "kernels.attention" in command_line(arguments, 2)


def test_help_and_dry_run(
    command_line: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = command_line(["benchmark", "pretrain", "pretrain-small", *TINY, "--dry-run"], 0)
    assert json.loads(printed)["train"]["batch_size"] == 8
    # The other benchmark is still there; it asks for models, and here are none.
    monkeypatch.chdir(tmp_path)
    assert "models" in command_line(["benchmark", "benchmark-edge", "--dry-run"], 2)


def test_the_table_says_what_an_optional_figure_is(
    measured: Callable[..., tuple[dict[str, Any], str]], tiny_corpus: Path
) -> None:
    result, _ = measured(f"corpus={tiny_corpus}")
    assert "largest" not in table(result)
    assert "largest micro-batch  12 instances" in table(result | {"largest_micro_batch": 12})
