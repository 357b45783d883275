"""What `lert-ds finetune` uploads: the best seed's model of each task, when all is done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds import hub_upload, run_lock
from lert_ds.finetune import run
from lert_ds.finetune.finetune_config import FinetuneRun

CommandLine = Callable[..., str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is uploaded, in order; a fine-tuning only makes its folder, that of xnli is stopped."""
    made: list[Any] = []

    def finetune(asked: FinetuneRun) -> dict[str, Any] | None:
        made.append(asked.task.name)
        (asked.output / "model").mkdir(parents=True)
        (asked.output / run_lock.FINISHED).write_text("{}", "utf-8")
        return None if asked.task.name == "xnli" else {"finished": True}

    monkeypatch.setattr(run, "finetune", finetune)
    monkeypatch.setattr(hub_upload, "try_push", lambda *given: made.append(given))
    return made


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for task in ("chnsenticorp", "ocnli", "xnli"):
        (tmp_path / "tasks" / task).mkdir(parents=True)
        for name in ("train.tsv", "train.json", "multinli.train.zh.tsv", "train.50k.json"):
            (tmp_path / "tasks" / task / name).write_text("", "utf-8")
    given = [f"task.data={tmp_path / 'tasks'}", f"output={tmp_path / 'out'}"]
    return ["hfl/a", *given, "train.batch_size=8", "train.learning_rate=1e-3"]


def test_one_task(calls: list[Any], arguments: list[str], command_line: CommandLine) -> None:
    command_line(["finetune", "ocnli", *arguments, "push_to_hub=me/x"])
    (name, (folder, address)) = calls
    assert (name, folder.name, address) == ("ocnli", "model", "me/x")
    calls.clear()
    command_line(["finetune", "ocnli", *arguments, "overwrite=true", "output=" + str(folder / "b")])
    assert calls == ["ocnli"]


def test_a_stopped_one_uploads_nothing(
    calls: list[Any], arguments: list[str], command_line: CommandLine
) -> None:
    command_line(["finetune", "xnli", *arguments, "push_to_hub=me/x"])
    assert calls == ["xnli"]


def test_several_tasks_need_a_name_each(
    calls: list[Any], arguments: list[str], command_line: CommandLine
) -> None:
    told = command_line(["finetune", "all", *arguments, "push_to_hub=me/x"], 2)
    assert "push_to_hub = me/x: one name for the models of several tasks" in told
    assert not calls
    own = ["chnsenticorp.push_to_hub=me/c", "ocnli.push_to_hub=me/o"]
    command_line(["finetune", "all", *arguments, *own])
    uploaded = {call[1]: call[0] for call in calls if isinstance(call, tuple)}
    trained = [call for call in calls if isinstance(call, str)]
    assert calls[: len(trained)] == trained  # uploads come last
    assert set(uploaded) <= {"me/c", "me/o"}
    assert {place.parent.name for place in uploaded.values()} <= {"chnsenticorp", "ocnli"}
    assert uploaded
