import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.errors import ConfigError
from prune.prune_config import PruneRun
from prune.recover import RecoverRun, as_distillation, as_pretraining
from prune.run import load, prune

TRAIN = {"steps": 2, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3,
         "data_workers": 0}  # fmt: skip


@pytest.fixture
def pruned(prune_run: Callable[..., PruneRun]) -> Path:
    """A model folder of uneven layers and 30 pieces or fewer."""
    run = prune_run(
        pruning={"target_num_of_heads": 2, "head_even_masking": False, "target_ffn_size": 12},
        vocabulary={"size": 30},
    )
    prune(run)
    return run.output / "model"


def recovery(model: Path, corpus: Path, output: Path, **changes: Any) -> RecoverRun:
    tree = {
        "model": str(model), "corpus": str(corpus), "output": str(output),
        "deepspeed": "ds_configs/cpu_fp32.json", "train": TRAIN,
    }  # fmt: skip
    return parse(RecoverRun, tree | changes, "test")


def test_the_pruned_model_is_the_student_and_what_was_pruned_the_teacher(
    pruned: Path, small_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = recovery(pruned, tiny_corpus, tmp_path / "r", seed=7, teacher_precision="fp32")
    found = as_distillation(run)
    assert found.teacher == (str(small_model),)
    assert found.student.model == str(pruned)
    assert (found.seed, found.teacher_precision, found.train) == (7, "fp32", run.train)
    named = as_distillation(recovery(pruned, tiny_corpus, tmp_path / "r", teacher="other"))
    assert named.teacher == ("other",)


def test_without_a_teacher_it_is_a_pre_training(
    pruned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = recovery(
        pruned, tiny_corpus, tmp_path / "r", objective="pretraining", lip={"tasks": ["pos"]}
    )
    found = as_pretraining(run)
    assert (found.init_from, found.lip.tasks, found.train) == (str(pruned), ("pos",), run.train)
    with pytest.raises(ConfigError, match="objective=pretraining has none"):
        as_pretraining(run.model_copy(update={"teacher": ("x",)}))


def test_a_model_that_says_nothing_of_its_origin_needs_a_teacher(
    pruned: Path, small_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = recovery(small_model, tiny_corpus, tmp_path / "r")
    with pytest.raises(ConfigError, match=r"teacher = \[\].*name the teacher"):
        as_distillation(run)
    (pruned / "run.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"run\.json: not JSON"):
        as_distillation(recovery(pruned, tiny_corpus, tmp_path / "r"))


@pytest.mark.parametrize("objective", ["distillation", "pretraining"])
def test_the_shape_and_the_vocabulary_stay_and_the_weights_change(
    command_line: Callable[..., str],
    pruned: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    objective: str,
) -> None:
    output = tmp_path / "recovered"
    arguments = [
        "recover", "recover-quickstart", f"model={pruned}", f"corpus={tiny_corpus}",
        f"output={output}", f"objective={objective}", "train.steps=4", "train.evaluate_every=2",
        "lip.tasks=[\"pos\"]",
    ]  # fmt: skip
    assert "parameters" in command_line([*arguments, "--dry-run"])
    command_line(arguments)
    before, after = load(str(pruned)), load(str(output / "model"))
    assert before.config.layer_attention_heads == after.config.layer_attention_heads
    assert before.config.vocab_size == after.config.vocab_size <= 30
    assert (pruned / "vocab.txt").read_bytes() == (output / "model" / "vocab.txt").read_bytes()
    change = after.bert.encoder.layer[0].output.dense.weight
    assert not change.equal(before.bert.encoder.layer[0].output.dense.weight)
    lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    valid = [r for line in lines if (r := json.loads(line))["kind"] == "valid"]
    assert ("mlm/agreement" in valid[-1]) is (objective == "distillation")
    assert model_dir.read_config(output / "model").tasks == ("pos",)
