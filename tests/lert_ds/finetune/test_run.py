"""`lert-ds finetune`, as it is called, on tasks that a tiny model learns in seconds."""

import json
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds import model_dir
from lert_ds.errors import ConfigError
from lert_ds.finetune import entity_score, run, span_score
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import TaskData, open_task
from lert_ds.finetune.task_evaluation import evaluate_model
from lert_ds.finetune.tasks import TASKS
from lert_ds.train.interruption import Interruption

SMALL = [
    "seeds=[1,2]", "train.epochs=0", "train.steps=12", "train.batch_size=8",
    "train.micro_batch_size=8", "train.learning_rate=3e-3", "train.report_every=4",
    "deepspeed=ds_configs/zero0_fp32.json",
]  # fmt: skip
Finetune = Callable[..., str]


@pytest.fixture
def finetune(
    command_line: Callable[..., str], tiny_model: Path, task_files: Path, tmp_path: Path
) -> Finetune:
    """Run `lert-ds finetune TASK` in this process on the small tasks; returns what it printed."""

    def call(task: str, *changes: str, model: Path = tiny_model, code: int = 0) -> str:
        output = [] if task == "all" else [f"output={tmp_path / 'run'}"]
        return command_line(
            ["finetune", task, str(model), f"task.data={task_files}", *output, *SMALL, *changes],
            code,
        )

    return call


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def evaluations(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == "valid"]


def data_of(name: str, folder: Path, model: Path) -> TaskData:
    return open_task(TaskConfig(name=name, data=folder), model, model_dir.read_config(model))


@pytest.mark.parametrize(
    ("name", "steps"), [("chnsenticorp", 12), ("peopledaily", 12), ("cmrc2018", 8)]
)
def test_two_seeds_to_the_end(
    finetune: Finetune, task_files: Path, tmp_path: Path, name: str, steps: int
) -> None:
    printed = finetune(name, f"train.steps={steps}", "evaluations_per_epoch=2")
    folder, task = tmp_path / "run", TASKS[name]
    summary = read(folder / "summary.json")
    seeds = [read(folder / f"seed-{seed}/scores.json") for seed in (1, 2)]
    splits = ["dev", "test"] if name != "cmrc2018" else ["dev"]
    assert list(summary["scores"]) == splits
    for split in splits:
        for metric, told in summary["scores"][split].items():
            values = [one[split][metric] for one in seeds]
            assert told == {
                "values": values,
                "max": max(values),
                "mean": pytest.approx(statistics.fmean(values)),
                "deviation": pytest.approx(statistics.stdev(values)),
            }
        shown = summary["scores"][split][task.metrics[0]]
        assert f"{task.title} {split}: {100 * shown['max']:.1f} ({100 * shown['mean']:.1f})" in (
            printed
        )
    best = max(seeds, key=lambda one: one["dev"][task.score])
    assert summary["best_seed"] == best["seed"]
    assert summary["seeds"] == [1, 2]
    assert summary["steps"] == steps

    # The model is whole, knows its classes, and is that of the best seed; the others' are gone.
    model, report = model_dir.load(folder / "model", KINDS[task.kind].model)
    assert not report.random
    if task.labels:
        assert list(model.config.id2label.values()) == list(task.labels)
    data = data_of(name, task_files, folder / "model")
    for split in splits:
        part = getattr(data, split)
        values, predictions = evaluate_model(model, data, part)
        assert values == best[split]
        told = read(folder / f"seed-{best['seed']}/predictions-{split}.json")
        assert told == predictions
        examples = part.examples
        if task.kind == "classification":
            hits = [example.label == label for example, label in zip(examples, told, strict=True)]
            assert values == {"accuracy": sum(hits) / len(hits)}
        elif task.kind == "entities":
            truths = [[task.labels[tag] for tag in example.tags] for example in examples]
            assert values == entity_score.score(truths, told)
        else:
            truths = [[answer.text for answer in example.answers] for example in examples]
            answers = [told[example.identity] for example in examples]
            assert values == span_score.score(truths, answers)
    for seed in (1, 2):
        names = {path.name for path in (folder / f"seed-{seed}").iterdir()}
        assert not names & {"model", "checkpoints", "best.safetensors"}
        assert {"config.json", "metrics.jsonl", "scores.json", "predictions-dev.json"} <= names
    assert evaluations(folder / "seed-1") != evaluations(folder / "seed-2")


def test_a_task_that_can_be_learnt_is_learnt(
    finetune: Finetune, write_task: Any, tmp_path: Path
) -> None:
    write_task(tmp_path / "tasks", "chnsenticorp", 20, train=80)
    finetune(
        "chnsenticorp", f"task.data={tmp_path / 'tasks'}", "train.steps=120", "seeds=[1]",
        "keep_models=true",
    )  # fmt: skip
    lines = (tmp_path / "run/seed-1/metrics.jsonl").read_text("utf-8").splitlines()
    losses = [r["loss"] for line in lines if (r := json.loads(line))["kind"] == "train"]
    assert losses[-1] < losses[0] / 2
    summary = read(tmp_path / "run/summary.json")
    assert summary["baselines"] == {"accuracy": {"commonest class": 0.5}}
    for split in ("dev", "test"):
        assert summary["scores"][split]["accuracy"]["max"] > 0.9
        assert summary["scores"][split]["accuracy"]["deviation"] is None
    assert (tmp_path / "run/seed-1/model/model.safetensors").read_bytes() == (
        tmp_path / "run/model/model.safetensors"
    ).read_bytes()


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the training to stop after so many steps of this process."""
    calls = iter(range(steps - 1))
    code = 10  # as SIGUSR1 would
    monkeypatch.setattr(
        Interruption, "code", lambda *_: 0 if next(calls, None) is not None else code
    )


def test_what_is_finished_is_not_trained_again(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    arguments = ("ocnli", "task.held_out=0.2")
    with monkeypatch.context() as patch:
        interrupt_after(12 + 5, patch)
        assert "saved and stopped by" in finetune(*arguments)
    assert (folder / "seed-1/scores.json").is_file()
    assert not (folder / "seed-2/scores.json").exists()
    assert not (folder / "summary.json").exists()
    assert not (folder / "model").exists()
    before = (folder / "seed-1/metrics.jsonl").read_bytes()

    # With other settings it would be no comparison; of more seeds it is one.
    told = finetune(*arguments, "train.learning_rate=1e-3", code=2)
    assert f"{folder / 'seed-1'}: this seed was trained with other settings " in told
    assert "train.learning_rate: 0.003 → 0.001" in told
    assert (folder / "seed-1/metrics.jsonl").read_bytes() == before

    assert "resumed from step-5" in finetune(*arguments, "seeds=[1,2,3]")
    assert (folder / "seed-1/metrics.jsonl").read_bytes() == before
    interrupted = read(folder / "summary.json")
    assert interrupted["seeds"] == [1, 2, 3]

    told = finetune(*arguments, code=2)
    assert f"output = {folder}: it holds a finished result" in told
    shutil.rmtree(folder / "model")
    told = finetune(*arguments, code=2)
    assert "/model: the model of the best seed is not there any more; say overwrite=true" in told
    finetune(*arguments, "seeds=[1,2,3]", "overwrite=true")
    again = read(folder / "summary.json")
    assert again["scores"] == interrupted["scores"]
    resumed = evaluations(folder / "seed-2")
    assert [record["step"] for record in resumed] == sorted({r["step"] for r in resumed})


def test_more_seeds_can_be_asked_for_later(finetune: Finetune, tmp_path: Path) -> None:
    finetune("lcqmc", "seeds=[1]")
    folder = tmp_path / "run"
    before = (folder / "seed-1/metrics.jsonl").read_bytes()
    finetune("lcqmc", "seeds=[1,2,3]")
    summary = read(folder / "summary.json")
    assert summary["seeds"] == [1, 2, 3]
    assert (folder / "seed-1/metrics.jsonl").read_bytes() == before
    scores = {seed: read(folder / f"seed-{seed}/scores.json") for seed in (1, 2, 3)}
    best = scores[summary["best_seed"]]
    assert summary["scores"]["dev"]["accuracy"]["max"] == best["dev"]["accuracy"]
    record = read(folder / "model/run.json")
    assert record["config"]["seed"] == summary["best_seed"]
    said = finetune("lcqmc", "seeds=[1,2]", code=2)
    assert "holds a finished result" in said


@pytest.mark.parametrize("key", ["evaluate_every", "save_every"])
def test_one_key_says_how_often_it_is_judged(finetune: Finetune, tmp_path: Path, key: str) -> None:
    said = finetune("lcqmc", f"train.{key}=5", code=2)
    assert f"train.{key} = 5: evaluations_per_epoch says how often here" in said


def test_the_best_evaluations_weights_are_the_result(
    finetune: Finetune, tasks_upside_down: Path, tmp_path: Path
) -> None:
    finetune("bq", f"task.data={tasks_upside_down}", "train.steps=60", "seeds=[3]")
    records = evaluations(tmp_path / "run/seed-3")
    accuracies = [record["accuracy"] for record in records]
    scores = read(tmp_path / "run/seed-3/scores.json")
    assert accuracies[-1] < max(accuracies) == scores["dev"]["accuracy"]
    first = next(r for r in records if r["accuracy"] == max(accuracies))
    assert scores["chosen_step"] == first["step"] < scores["steps"] == 60
    # Where the last weights are asked for, they are the result.
    last = tmp_path / "last"
    finetune(
        "bq", f"task.data={tasks_upside_down}", "train.steps=60", "seeds=[3]", "choose=last",
        f"output={last}",
    )  # fmt: skip
    scores = read(last / "seed-3/scores.json")
    assert scores["chosen_step"] == 60
    assert scores["dev"]["accuracy"] == accuracies[-1]


@pytest.fixture
def tasks_upside_down(write_task: Any, tmp_path: Path) -> Path:
    """A task whose dev file has the classes the other way: what is learnt makes it worse."""
    place = write_task(tmp_path / "tasks", "bq", 40, train=80)
    lines = (place / "dev.csv").read_text("utf-8").splitlines()
    turned = [line[:-1] + {"0": "1", "1": "0"}.get(line[-1], line[-1]) for line in lines]
    (place / "dev.csv").write_text("\n".join(turned) + "\n", "utf-8")
    return tmp_path / "tasks"


def test_all_tasks_that_are_there(finetune: Finetune, write_task: Any, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    write_task(tasks, "chnsenticorp").rename(tasks / "csc")
    write_task(tasks, "msra", 20)
    (tasks / "bq").mkdir()  # without a file
    arguments = [
        "all", f"task.data={tasks}", f"output={tmp_path / 'of-all'}", "seeds=[4]",
        "train.steps=3", f"msra.output={tmp_path / 'other'}", "msra.train.steps=5",
    ]  # fmt: skip
    told = finetune(*arguments)
    absent = [name for name in TASKS if name not in ("chnsenticorp", "msra")]
    assert f"no files to train on for {', '.join(absent)}" in told
    of_csc, of_msra = tmp_path / "of-all/chnsenticorp", tmp_path / "other"
    assert read(of_csc / "summary.json")["steps"] == 3
    assert read(of_msra / "summary.json")["steps"] == 5
    assert sorted(path.name for path in (tmp_path / "of-all").iterdir()) == ["chnsenticorp"]
    # What is finished is left as it is.
    before = (of_csc / "seed-4/metrics.jsonl").read_bytes()
    told = finetune(*arguments)
    assert f"{of_csc}: finished before; say overwrite=true to do it again" in told
    assert (of_csc / "seed-4/metrics.jsonl").read_bytes() == before


def test_all_of_nothing_is_refused(finetune: Finetune, tmp_path: Path) -> None:
    told = finetune("all", f"task.data={tmp_path}", code=2)
    assert f"task.data = {tmp_path}: it has no folder of a task with a file to train on" in told


def test_a_tasks_own_overrides_reach_it_alone(task_files: Path, tmp_path: Path) -> None:
    overrides = [
        f"task.data={task_files}", "train.learning_rate=1e-3", "ocnli.train.learning_rate=2e-3",
        "ocnli.task.max_length=32",
    ]  # fmt: skip
    runs = {one.task.name: one for one in run.read_runs("all", "some/model", overrides)}
    assert list(runs) == list(TASKS)
    for name, one in runs.items():
        assert one.train.learning_rate == (2e-3 if name == "ocnli" else 1e-3)
        assert (one.task.max_length == 32) == (name == "ocnli")
        assert one.output == Path(f"runs/finetune-{name}")
    (alone,) = run.read_runs("ocnli", "some/model", overrides)
    assert alone == runs["ocnli"]
    # A file of one's own is of the task that it names.
    own = tmp_path / "own.toml"
    own.write_text((run.PRESETS / "finetune-ocnli.toml").read_text("utf-8"), "utf-8")
    assert run.read_runs(str(own), "some/model", overrides) == [alone]
    with pytest.raises(
        ConfigError, match=r"ocnli.task.max_length=32: the task is bq; take this out"
    ):
        run.read_runs("bq", "some/model", overrides[-1:])


def test_a_dry_run_writes_nothing(finetune: Finetune, tmp_path: Path) -> None:
    told = finetune("msra", "--dry-run", "--processes", "2", "train.micro_batch_size=4")
    assert "8 instances = 4 a micro-batch × 1 accumulated × 2 processes" in told
    assert re.search(r"seeds +2, each of them as above", told)
    assert re.search(r"corpus +14 instances of \d+ tokens", told)
    assert '"learning_rate": 0.003' in told or "learning_rate = 0.003" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ocnil",), r"ocnil: no such task \(did you mean ocnli\?\)"),
        (
            ("ocnli", "train.lerning_rate=1"),
            r"unknown key train.lerning_rate \(did you mean learning_rate\?\)",
        ),
        (("ocnli", "seeds=[1,1]"), r"seeds = \[1, 1\]: give one or more, each once"),
        (("ocnli", "task.data=nowhere"), "task.data = nowhere: there is no such folder"),
        (("ocnli", "train.steps=0"), "steps is missing"),
        (("none.toml",), "none.toml"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    finetune: Finetune, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    told = finetune(*arguments, code=2)
    assert re.search(f"error: .*{message}", told)
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_task_is_refused_and_one_of_the_same_classes_goes_on(
    finetune: Finetune, tmp_path: Path
) -> None:
    finetune("lcqmc", "seeds=[1]", "train.steps=2")
    model = tmp_path / "run/model"
    for name in ("ocnli", "msra"):
        output = f"output={tmp_path / name}"
        told = finetune(name, output, model=model, code=2)
        assert f"{model}: it was fine-tuned for 0, 1, not for {TASKS[name].title}; start" in told
        assert not (tmp_path / name).exists()
    finetune("bq", f"output={tmp_path / 'bq'}", "seeds=[1]", "train.steps=2", model=model)
    assert (tmp_path / "bq/summary.json").is_file()
