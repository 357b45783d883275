"""Whole prunings on a task are in tests/distill/test_task_distillation.py; here its samples."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.errors import ConfigError
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.seed_run import label_names
from lert_ds.finetune.tasks import TASKS
from prune.prune_config import PruneRun
from prune.pruning_task import PruningTask


def opened(folder: Path, tiny_model: Path, name: str, method: str = "fisher") -> PruningTask:
    tree = {
        "model": str(tiny_model),
        "output": str(folder / "run"),
        "task": {"name": name, "data": str(folder)},
        "scoring": {"method": method, "instances": 24, "batch_size": 4},
    }
    config = parse(PruneRun, tree, "test")
    shape = model_dir.read_config(tiny_model, **label_names(TASKS[name]))
    return PruningTask.open(config, tiny_model, shape)


def test_processes_share_the_scores_and_have_all_of_the_repair(
    write_task: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path, "lcqmc", 12, train=40)
    task = opened(tmp_path, tiny_model, "lcqmc")
    alone = [number for batch in task.scoring_batches() for number in batch.features.tolist()]
    assert len(alone) == len(set(alone)) == 24
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        shares.append([n for batch in task.scoring_batches() for n in batch.features.tolist()])
        assert sum(len(batch.features) for batch in task.repair_batches(32)) == 32
    assert sorted(shares[0] + shares[1]) == sorted(alone)
    assert len(shares[0]) == len(shares[1])


def test_pieces_are_counted_over_what_is_trained_on(
    write_task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, "msra", 12)
    task = opened(tmp_path, tiny_model, "msra")
    counts = task.piece_counts()
    rows = [feature.input_ids.tolist() for feature in task.data.train.features]
    assert counts.tolist() == [sum(row.count(n) for row in rows) for n in range(len(counts))]


def test_a_trial_is_judged_in_the_vocabulary_that_is_left(
    write_task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, "msra", 12)
    task = opened(tmp_path, tiny_model, "msra")
    torch.manual_seed(0)
    names = label_names(TASKS["msra"])
    model, _ = model_dir.load(tiny_model, KINDS["entities"].model, **names)
    batches = task.layer_batches()
    size = task.data.vocabulary_size
    whole = task.trial_loss(model.eval(), batches, None, size, 1)
    assert whole == task.trial_loss(model, batches, torch.arange(size), size, 1)
    assert whole > 0


def test_two_sets_of_logits_cannot_be_compared_with_themselves(
    write_task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, "drcd", 12)
    with pytest.raises(ConfigError, match=r"textpruner_logits .* DRCD has two"):
        opened(tmp_path, tiny_model, "drcd", "textpruner_logits")
