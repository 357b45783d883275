"""Distillation, pruning's recovery included, on a task: by the commands, from end to end."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lert_ds import model_dir
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import open_task
from lert_ds.finetune.task_evaluation import evaluate_model
from lert_ds.finetune.tasks import TASKS

KINDS_OF = {"chnsenticorp": "classification", "msra": "entities", "cmrc2018": "spans"}
COMMON = [
    "train.batch_size=16", "train.micro_batch_size=16", "train.learning_rate=3e-3",
    "train.save_every=0", "train.report_every=5",
]  # fmt: skip
SMALLER = [
    "pruning.target_num_of_heads=1", "pruning.target_ffn_size=32", "pruning.multiple_of=8",
]  # fmt: skip
Call = Callable[..., str]


@pytest.fixture(scope="module")
def tuned(
    write_task: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, process_group: None
) -> Callable[[str], tuple[Path, Path]]:
    """Task to the folder of the tasks' files and a model that was fine-tuned for it."""
    from lert_ds.finetune.run import finetune, read_runs

    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            write_task(folder / "tasks", name, 30, train=160)
            overrides = [
                f"task.data={folder / 'tasks'}", f"output={folder / 'run'}", "seeds=[1]",
                "deepspeed=ds_configs/cpu_fp32.json", "train.epochs=8", *COMMON,
            ]  # fmt: skip
            (run,) = read_runs(name, str(tiny_model), overrides)
            assert finetune(run) is not None
            made[name] = (folder / "tasks", folder / "run" / "model")
        return made[name]

    return make


def on_task(name: str, data: Path, *more: str) -> Sequence[str]:
    return [f"task.name={name}", f"task.data={data}", "deepspeed=ds_configs/cpu_fp32.json",
            *COMMON, *more]  # fmt: skip


def score_of(folder: Path, name: str, data: Path) -> float:
    task_data = open_task(TaskConfig(name=name, data=data), folder, model_dir.read_config(folder))
    model, report = model_dir.load(folder, KINDS[TASKS[name].kind].model)
    assert not report.random
    return evaluate_model(model, task_data, task_data.dev)[0][TASKS[name].score]


@pytest.mark.parametrize("name", KINDS_OF)
def test_a_student_learns_a_task_from_its_teacher(
    tuned: Any, command_line: Call, tmp_path: Path, name: str
) -> None:
    data, teacher = tuned(name)
    command_line(
        [
            "distill", "distill-task", f"teacher={teacher}", f"output={tmp_path / 'run'}",
            *on_task(name, data, "train.epochs=12", "train.evaluate_every=60"),
            "student.model=null", "student.layers=1", "student.hidden_size=16", "student.heads=2",
            "student.intermediate_size=32", "student.positions=64", "student.start=teacher",
        ]
    )  # fmt: skip
    summary = json.loads((tmp_path / "run/summary.json").read_text("utf-8"))
    valid, score = summary["valid"], TASKS[name].score
    head = {"classification": "label", "entities": "tag", "spans": "start"}[KINDS_OF[name]]
    assert valid[f"{head}/agreement"] > 0.6
    assert summary["baselines"][score]["teacher"] == pytest.approx(
        score_of(teacher, name, data), abs=1e-6
    )
    found = score_of(tmp_path / "run/model", name, data)
    assert found == pytest.approx(valid[score], abs=1e-6)  # the best weights, and no others
    assert found > 0.6 * score_of(teacher, name, data)
    record = json.loads((tmp_path / "run/model/run.json").read_text("utf-8"))
    assert record["config"]["task"]["name"] == name


@pytest.mark.parametrize("name", KINDS_OF)
def test_a_fine_tuned_model_is_pruned_and_recovered(
    tuned: Any, command_line: Call, tmp_path: Path, name: str
) -> None:
    data, model = tuned(name)
    task = [f"task.name={name}", f"task.data={data}"]
    command_line(
        [
            "prune", "prune-task", f"model={model}", f"output={tmp_path / 'pruned'}", *task,
            *SMALLER,
            "pruning.n_iters=2", "scoring.instances=32",
        ]
    )  # fmt: skip
    pruned = json.loads((tmp_path / "pruned/summary.json").read_text("utf-8"))
    score = TASKS[name].score
    assert pruned["held_out"]["original"][score] == pytest.approx(score_of(model, name, data))
    assert sum(pruned["heads"]) == 2
    assert sum(pruned["neurons"]) == 64
    assert score_of(tmp_path / "pruned/model", name, data) == pytest.approx(
        pruned["held_out"]["repaired"][score]
    )
    command_line(
        [
            "recover", "recover-task", f"model={tmp_path / 'pruned/model'}",
            f"output={tmp_path / 'recovered'}",
            *on_task(name, data, "train.epochs=4", "train.evaluate_every=10"),
        ]
    )  # fmt: skip
    recovered = score_of(tmp_path / "recovered/model", name, data)
    assert recovered >= 0.9 * score_of(model, name, data)
    config = model_dir.read_config(tmp_path / "recovered/model")
    assert [config.heads_of(k) for k in range(2)] == pruned["heads"]


@pytest.mark.parametrize("method", ["textpruner", "textpruner_logits", "gate_gradient"])
def test_every_score_takes_a_task(
    tuned: Any, command_line: Call, tmp_path: Path, method: str
) -> None:
    data, model = tuned("chnsenticorp")
    command_line(
        [
            "prune", "prune-task", f"model={model}", f"output={tmp_path / 'pruned'}",
            "task.name=chnsenticorp", f"task.data={data}", f"scoring.method={method}",
            *SMALLER,
            "pruning.n_iters=1", "pruning.head_even_masking=true", "pruning.ffn_even_masking=true",
            "scoring.instances=32",
        ]
    )  # fmt: skip
    summary = json.loads((tmp_path / "pruned/summary.json").read_text("utf-8"))
    assert summary["scored"][0]["method"] == method
    assert (summary["heads"], summary["neurons"]) == ([1, 1], [32, 32])


def test_layers_pieces_and_a_size_are_chosen_by_the_task(
    tuned: Any, command_line: Call, tmp_path: Path
) -> None:
    data, model = tuned("chnsenticorp")
    task = ["task.name=chnsenticorp", f"task.data={data}"]
    command_line(
        [
            "prune", "prune-task", f"model={model}", f"output={tmp_path / 'pruned'}", *task,
            "pruning.target_num_of_heads=null", "pruning.target_ffn_size=null", "pruning.n_iters=1",
            "drop_layers=1", "vocabulary.minimum_count=1",
        ]
    )  # fmt: skip
    summary = json.loads((tmp_path / "pruned/summary.json").read_text("utf-8"))
    assert len(summary["layers"]) == 1
    assert summary["pieces"]["after"] < summary["pieces"]["before"]
    found = score_of(tmp_path / "pruned/model", "chnsenticorp", data)
    assert found == pytest.approx(summary["held_out"]["repaired"]["accuracy"])

    size = sum(summary["parameters"].values()) // 2
    command_line(
        [
            "prune", "prune-task", f"model={model}", f"output={tmp_path / 'sized'}", *task,
            "pruning.target_num_of_heads=null", "pruning.target_ffn_size=null",
            "pruning.multiple_of=8", "pruning.n_iters=1", f"target.parameters={size}",
        ]
    )  # fmt: skip
    sized = json.loads((tmp_path / "sized/summary.json").read_text("utf-8"))
    assert sized["parameters"]["after"] <= size


@pytest.mark.parametrize(
    ("command", "change", "told"),
    [
        ("distill", "corpus=somewhere", "corpus and task are both given"),
        ("distill", "task=null", "corpus is missing; name a corpus folder, or a task"),
        ("distill", "task.name=ocnli", "there is no train.50k.json"),
        ("prune", "corpus=somewhere", "corpus and task are both given"),
        ("prune", "task=null", "needs? text"),
        ("recover", "objective=pretraining", "say lert-ds finetune"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(
    tuned: Any, command_line: Call, tmp_path: Path, command: str, change: str, told: str
) -> None:
    data, model = tuned("chnsenticorp")
    named = {"distill": f"teacher={model}", "prune": f"model={model}", "recover": f"model={model}"}
    said = command_line(
        [
            command, f"{command}-task", named[command], f"output={tmp_path / 'run'}",
            "task.name=chnsenticorp", f"task.data={data / 'chnsenticorp'}", change,
            *(["student.model=null"] if command == "distill" else []),
        ],
        code=2,
    )  # fmt: skip
    assert re.search(told, said), said
    assert not (tmp_path / "run/model").exists()


def test_a_model_of_another_task_is_refused(tuned: Any, command_line: Call, tmp_path: Path) -> None:
    _, model = tuned("msra")
    data, _ = tuned("chnsenticorp")
    own_student = ["student.model=null"]
    for command, name, more in (("distill", "teacher", own_student), ("prune", "model", SMALLER)):
        said = command_line(
            [command, f"{command}-task", f"{name}={model}", f"output={tmp_path / 'run'}",
             "task.name=chnsenticorp", f"task.data={data}", *more],
            code=2,
        )  # fmt: skip
        assert "its classes are O, B-PER" in said
