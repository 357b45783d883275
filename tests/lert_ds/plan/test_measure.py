"""What one process measures of its core."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import config, pretrain
from lert_ds.plan import measure


def question(tmp_path: Path, precision: str = "fp32") -> dict[str, Any]:
    path = Path(pretrain.__file__).parent / "configs/pretrain-quickstart.toml"
    run = config.load(
        pretrain.PretrainRun, path,
        [f"output={tmp_path}", "corpus=none", "train.gradient_checkpointing=true"],
    )  # fmt: skip
    return {
        "run": config.dump(run), "precision": precision, "length": 64, "hidden_size": 32,
        "intermediate_size": 64, "heads": 2,
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
def test_every_rate_is_that_of_a_processor(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LARGE", 64)
    monkeypatch.setattr(measure, "SMALL", 32)
    monkeypatch.setattr(measure, "COPY_ELEMENTS", 2**16)
    measured = measure.measure(question(tmp_path, precision))
    assert measured.layer_tokens == 1024
    assert 1e6 < measured.small_flops < 1e14
    assert 1e6 < measured.large_flops < 1e14
    assert 1e7 < measured.copy_bytes < 1e13
    assert 1e-8 < measured.launch_seconds < 1e-2
    assert measured.layer_seconds > 0
    assert measured.half_length_seconds > 0


def test_the_layer_is_one_of_the_training(tmp_path: Path) -> None:
    layer = measure._layer(question(tmp_path), torch.float32)
    assert layer.training
    assert layer.attention.self.query.weight.shape == (32, 32)  # type: ignore[union-attr]
    output = layer(torch.randn(2, 64, 32))
    again = layer(torch.randn(2, 64, 32))
    assert output[0].shape == again[0].shape


def test_the_best_of_several_counts() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) != 3:
            torch.randn(400, 400) @ torch.randn(400, 400)

    assert measure.best_seconds(work, repeats=4) < 1e-3
    assert len(calls) == 5  # one to warm up


@pytest.mark.slow
def test_a_process_waits_for_the_word_and_answers_in_json(tmp_path: Path) -> None:
    asked = json.dumps(question(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "lert_ds.plan.measure", asked], input="go\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ready, answer = done.stdout.splitlines()
    assert ready == "ready"
    assert measure.Measured(**json.loads(answer)).layer_seconds > 0
