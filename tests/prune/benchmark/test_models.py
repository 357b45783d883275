"""PyTorch as a runner of arrays: the model's own outputs, and none of heads that learnt nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds import model_dir, tokenizer_files
from lert_ds.errors import ModelError
from lert_ds.modeling_lert import LertForSequenceClassification
from prune.benchmark import models as benchmark_models
from prune.benchmark.inputs import Text

TEXT = "".join(map(chr, range(0x4E00, 0x4E28)))


def test_outputs_are_the_models_with_and_without_padding(tiny_model: Path) -> None:
    model, _ = model_dir.load(tiny_model)
    run = benchmark_models.opener(tiny_model, "fp32")(1)
    given = dict(Text(tokenizer_files.load(tiny_model), TEXT).inputs(2, 16, 0.2))
    for padding in (0, 5):
        mask = given["attention_mask"].copy()
        mask[1, 16 - padding :] = 0
        given["attention_mask"] = mask
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in given.items()}
            wanted = model.eval()(**tensors)
        found = run(given)
        assert set(found) == {"logits", "pos_logits", "dep_logits"}
        assert found["logits"].shape == (6, 45)
        np.testing.assert_allclose(found["logits"], wanted.logits.numpy(), atol=1e-5)
        np.testing.assert_allclose(found["pos_logits"], wanted.tag_logits["pos"], atol=1e-5)


def test_bf16_computes_in_bf16_and_answers_in_fp32(tiny_model: Path) -> None:
    given = Text(tokenizer_files.load(tiny_model), TEXT).inputs(2, 16, 0.2)
    exact, rough = (
        benchmark_models.opener(tiny_model, precision)(1)(given)["logits"]
        for precision in ("fp32", "bf16")
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.3


def test_threads_are_those_asked_for(tiny_model: Path) -> None:
    before = torch.get_num_threads()
    open_model = benchmark_models.opener(tiny_model, "fp32")
    try:
        for threads in (2, 1):
            open_model(threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_head_that_learnt_nothing_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tree = json.loads((folder / "config.json").read_text("utf-8"))
    tree["tag_sets"]["ner"] = ["O", "S-Ns"]
    (folder / "config.json").write_text(json.dumps(tree), "utf-8")
    assert benchmark_models.load(folder, "fp32").config.tasks == ("pos", "dep")


def test_a_model_that_fills_nothing_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = model_dir.read_config(tiny_model)
    config.tag_sets = None
    model_dir.save(LertForSequenceClassification(config), tiny_model, tmp_path / "model")
    with pytest.raises(ModelError, match="it has no MLM head"):
        benchmark_models.load(tmp_path / "model", "fp32")


@pytest.mark.parametrize(
    ("task", "head", "names"),
    [
        ("ocnli", "sequence_classification", {"logits"}),
        ("cmrc2018", "question_answering", {"start_logits", "end_logits"}),
    ],
)
def test_fine_tuned_models_run_with_their_head(
    fine_tuned: Callable[[str], tuple[Path, Path]], task: str, head: Any, names: set[str]
) -> None:
    folder, _ = fine_tuned(task)
    given = dict(Text(tokenizer_files.load(folder), TEXT).inputs(2, 16, None))
    run = benchmark_models.opener(folder, "fp32", head)(1)
    whole = run(given)
    assert set(whole) == names
    mask = given["attention_mask"].copy()
    mask[1, 10:] = 0
    padded, short = run({**given, "attention_mask": mask}), {}
    for name, array in given.items():
        short[name] = array[1:, :10]
    for name, logits in run(short).items():
        np.testing.assert_allclose(padded[name][1, : logits.shape[1]], logits[0], atol=1e-5)
        assert not np.allclose(whole[name][1, : logits.shape[1]], logits[0], atol=1e-5)


def test_a_model_without_the_head_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights for question_answering \(qa_outputs"):
        benchmark_models.load(tiny_model, "fp32", "question_answering")
