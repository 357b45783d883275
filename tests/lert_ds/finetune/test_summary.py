from pathlib import Path

import pytest

from lert_ds import model_dir
from lert_ds.finetune import run, seed_run, summary
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import open_task


def test_a_summary_tells_the_best_and_the_mean(
    tiny_model: Path, task_files: Path, tmp_path: Path
) -> None:
    settings = TaskConfig(name="ocnli", data=task_files)
    data = open_task(settings, tiny_model, model_dir.read_config(tiny_model))
    overrides = [f"task.data={task_files}", "deepspeed=ds_configs/zero0_fp32.json"]
    (asked,) = run.read_runs("ocnli", str(tiny_model), overrides)
    facts = {"seconds": 1.25, "processes": 1, "versions": {}}
    scores = [
        {"seed": seed, "dev": {"accuracy": value}, **facts}
        for seed, value in ((7, 0.25), (3, 0.75), (5, 0.75), (4, 0.65))
    ]
    found = summary.summarize(seed_run.plan(asked, data, 1), data, scores)
    told = found["scores"]["dev"]["accuracy"]
    assert told["values"] == [0.25, 0.75, 0.75, 0.65]
    assert (told["max"], told["mean"]) == (0.75, pytest.approx(0.6))
    assert told["deviation"] == pytest.approx((0.17 / 3) ** 0.5)
    assert found["best_seed"] == 3  # the first of equals
    assert found["seconds"] == 5.0
    assert summary.lines(found) == ["OCNLI dev: 75.0 (60.0)  accuracy, best (mean) of 4 seeds"]


def test_there_is_no_summary_before_the_end(tmp_path: Path) -> None:
    assert summary.read(tmp_path) == {}
