import re
from pathlib import Path

import pytest

from lert_ds import config
from lert_ds.errors import ConfigError
from lert_ds.finetune import run
from lert_ds.finetune.finetune_config import FinetuneRun
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.readers import LABEL, PAIR, TEXT
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import find_files
from lert_ds.finetune.tasks import SPLITS, TASKS, Task, find_task

OF_THE_PAPER = "cmrc2018 drcd chnsenticorp tnews xnli ocnli lcqmc bq msra peopledaily".split()
tasks = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def test_the_tasks_of_the_paper_in_the_order_of_its_tables() -> None:
    assert list(TASKS) == OF_THE_PAPER
    assert find_task("csc") is TASKS["chnsenticorp"]
    assert find_task("pd") is TASKS["peopledaily"]
    assert find_task("msra-ner") is TASKS["msra"]


@tasks
def test_a_task_is_whole(task: Task) -> None:
    assert set(task.files) == set(SPLITS)
    assert task.files["train"]
    assert task.kind in KINDS
    assert len(set(task.labels)) == len(task.labels)
    assert (
        (task.layout is not None) == (task.kind == "classification") == (task.score == "accuracy")
    )
    if task.layout is not None:
        assert set(task.layout.order) == set(task.layout.fields) >= {TEXT, LABEL}
        assert (PAIR in task.layout.fields) == (task.name in {"xnli", "ocnli", "lcqmc", "bq"})
        assert set(task.layout.spellings.values()) <= set(task.labels)
    if task.kind == "entities":
        assert task.labels[0] == "O"
        assert {label[2:] for label in task.labels if label.startswith("B-")} == {
            label[2:] for label in task.labels if label.startswith("I-")
        }
    assert (not task.labels) == (task.kind == "spans")


@tasks
def test_a_task_has_a_preset_that_loads_and_says_its_name(task: Task) -> None:
    path = config.find(f"finetune-{task.name}", [run.PRESETS], "finetune")
    preset = config.load(FinetuneRun, path, ["model=some/model"])
    assert preset.task.name == task.name
    assert preset.output == Path(f"runs/finetune-{task.name}")
    assert preset.train.batch_size % preset.train.micro_batch_size == 0


@tasks
def test_the_settings_name_every_task(task: Task) -> None:
    description = TaskConfig.model_fields["name"].description
    assert description is not None
    assert re.search(rf"\b{task.name}\b", description)


@tasks
def test_the_owners_files_are_found(task_files: Path, task: Task) -> None:
    found = find_files(TaskConfig(name=task.name, data=task_files), task)
    there = {path.name for path in (task_files / task.name).iterdir()}
    assert {path.name for path in found.values()} == there
    assert "train" in found


def test_a_name_that_is_none_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"^ocnil: no such task \(did you mean ocnli\?\); there "):
        find_task("ocnil")
    with pytest.raises(ConfigError, match=r"^zzzz: no such task; there are cmrc2018, drcd"):
        find_task("zzzz")
