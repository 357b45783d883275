"""Pruning and recovery under the real launcher, two processes."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lert_ds.files import sha256_of

Launch = Callable[[int, Sequence[str]], subprocess.CompletedProcess[str]]


@pytest.mark.launch
def test_two_processes_score_as_one_and_train_what_is_left(
    launch: Launch, command_line: Callable[..., str], small_model: Path, tiny_corpus: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    def arguments(name: str) -> list[str]:
        return [
            "prune", "prune-quickstart", f"model={small_model}", f"corpus={tiny_corpus}",
            f"output={tmp_path / name}", f"scoring.file={tmp_path / name}.safetensors",
            "scoring.method=gate_gradient", "scoring.instances=32", "repair.instances=32",
            "pruning.n_iters=1", "pruning.target_num_of_heads=2", "pruning.target_ffn_size=12",
        ]  # fmt: skip

    def launched(words: Sequence[str]) -> None:
        done = launch(2, ["--module", "lert_ds", *words])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    command_line(arguments("one"))
    launched(arguments("two"))
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-4, atol=1e-7)
    masks: list[dict[str, Any]] = [
        load_file(tmp_path / name / "masks.safetensors") for name in ("one", "two")
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])

    model = tmp_path / "two" / "model"
    recovery = [
        "recover", "recover-quickstart", f"model={model}", f"corpus={tiny_corpus}",
        f"output={tmp_path / 'recovered'}", "train.steps=4", "train.evaluate_every=2",
        "train.batch_size=16", "train.micro_batch_size=8", 'lip.tasks=["pos"]',
    ]  # fmt: skip
    launched(recovery)
    trained = tmp_path / "recovered" / "model" / "model.safetensors"
    assert sha256_of(trained) != sha256_of(model / "model.safetensors")
