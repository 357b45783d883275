"""Scores of columns on a task: graphs as PyTorch, each in its own vocabulary; what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.edge.edge_model import EdgeModel
from lert_ds.errors import ConfigError, UserError
from lert_ds.finetune.kinds import KINDS, run_model
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import open_task
from lert_ds.finetune.task_evaluation import evaluate_model
from lert_ds.finetune.tasks import TASKS
from lert_ds.model_surgery import Cut, cut
from prune.benchmark.columns import find_columns
from prune.benchmark.task_quality import TaskQuality, graph_run
from prune.vocabulary import pruned_tokenizer

FineTuned = Callable[[str], tuple[Path, Path]]
NAMES = ["ocnli", "peopledaily", "cmrc2018"]


def quality(name: str, data: Path) -> TaskQuality:
    settings = {"name": name, "data": str(data), "max_length": 32, "stride": 8}
    return TaskQuality(parse(TaskConfig, settings, "test"))


@pytest.mark.parametrize("name", NAMES)
def test_graphs_reach_what_the_model_reaches(
    fine_tuned: FineTuned, dev_files: Path, name: str
) -> None:
    model, edge = fine_tuned(name)
    asked = quality(name, dev_files)
    torch_, fp32, int8 = (
        asked.evaluate(column) for column in find_columns([str(model), str(edge)], [], "fp32")
    )
    assert set(torch_) == {"dev"}
    assert fp32 == torch_
    assert int8["dev"].keys() == torch_["dev"].keys()
    for metric, value in int8["dev"].items():
        assert value == pytest.approx(torch_["dev"][metric], abs=0.25)
    assert max(torch_["dev"].values()) > 0
    data = open_task(asked._settings, model, model_dir.read_config(model), to_train=False)
    loaded, _ = model_dir.load(model, KINDS[TASKS[name].kind].model)
    assert evaluate_model(loaded, data, data.dev)[0] == torch_["dev"]
    assert asked.record() == {
        "name": name,
        "title": TASKS[name].title,
        "metrics": list(TASKS[name].metrics),
        "files": {"dev": "dev.txt" if name == "peopledaily" else "dev.json"},
        "examples": {"dev": 40},
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_gives_the_models_logits_on_padded_batches(
    fine_tuned: FineTuned, dev_files: Path, name: str
) -> None:
    folder, edge = fine_tuned(name)
    kind = TASKS[name].kind
    data = open_task(
        quality(name, dev_files)._settings, folder, model_dir.read_config(folder), to_train=False
    )
    model = model_dir.load(folder, KINDS[kind].model)[0].eval()
    run = graph_run(EdgeModel(edge, graph="fp32").run, kind)
    masks = 0
    for batch in data.evaluation(data.dev):
        masks += batch.attention_mask is not None
        with torch.inference_mode():
            wanted = run_model(model, KINDS[kind], batch)
        for ours, theirs in zip(run(batch), wanted, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert masks


def test_a_smaller_vocabulary_reads_the_same_examples(
    fine_tuned: FineTuned, dev_files: Path, tmp_path: Path
) -> None:
    source, _ = fine_tuned("ocnli")
    model, _ = model_dir.load(source, KINDS["classification"].model)
    pieces = torch.tensor([*range(5), *range(25, 45)])  # of 40 signs the last 20 stay
    pruned_tokenizer.save(source, pieces, tmp_path / "tokens")
    model_dir.save(cut(model, Cut(pieces=pieces)), tmp_path / "tokens", tmp_path / "pruned")
    columns = find_columns([str(source), str(tmp_path / "pruned")], [], "fp32")
    whole, pruned = (quality("ocnli", dev_files).evaluate(column) for column in columns)
    assert whole != pruned  # half of the signs are [UNK] to it
    text = (dev_files / "ocnli/dev.json").read_text("utf-8")
    (tmp_path / "known" / "ocnli").mkdir(parents=True)
    for number in range(20):  # signs that both know
        text = text.replace(f"\\u4e{number:02x}", f"\\u4e{number + 20:02x}")
    (tmp_path / "known/ocnli/dev.json").write_text(text, "utf-8")
    asked = quality("ocnli", tmp_path / "known")
    whole, pruned = (asked.evaluate(column) for column in columns)
    assert whole == pruned


def test_other_classes_and_missing_files_are_told_first(
    fine_tuned: FineTuned, dev_files: Path, tmp_path: Path
) -> None:
    model, _ = fine_tuned("ocnli")
    (column,) = find_columns([str(model)], [], "fp32")
    with pytest.raises(UserError, match=r"its classes are entailment, .* those of ChnSentiCorp"):
        quality("chnsenticorp", dev_files).check(column)
    with pytest.raises(UserError, match="there is no such folder"):
        quality("ocnli", tmp_path / "none").check(column)
    with pytest.raises(ConfigError, match="no such task"):
        quality("ocnly", dev_files)


def test_without_a_dev_file_what_is_held_out_of_train_counts(
    fine_tuned: FineTuned, dev_files: Path, tmp_path: Path
) -> None:
    model, _ = fine_tuned("ocnli")
    (column,) = find_columns([str(model)], [], "fp32")
    (tmp_path / "ocnli").mkdir()
    shutil.copy(dev_files / "ocnli/dev.json", tmp_path / "ocnli/train.json")
    asked = quality("ocnli", tmp_path)
    asked.evaluate(column)
    assert asked.record()["examples"] == {"dev": 4}
    assert asked.record()["files"] == {"train": "train.json"}
