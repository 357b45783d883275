"""One fine-tuning: a seed, its training, and what its best weights reach."""

import dataclasses
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lert_ds import distributed, model_dir, run_folder, run_lock, training, training_run
from lert_ds.arithmetic import flops_per_token
from lert_ds.config import differences, dump
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError
from lert_ds.files import write_json
from lert_ds.finetune.finetune_config import BY_THE_MACHINE, FinetuneRun
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.objective import FinetuneObjective
from lert_ds.finetune.task_data import TaskData
from lert_ds.finetune.task_evaluation import evaluate_model
from lert_ds.finetune.tasks import Task
from lert_ds.machine import multiplies_bf16
from lert_ds.model_source import CONFIG
from lert_ds.train.engine import device
from lert_ds.train.peers import Peers

SCORES = "scores.json"
"""In the folder of a seed: what its best weights reach; it is finished then."""

_WITH_CLASSES = ("ForSequenceClassification", "ForTokenClassification")
"""How the classes of models end whose head is of one task's classes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A fine-tuning whose every number is known and checked."""

    run: FinetuneRun
    """With its steps."""
    shape: LertConfig
    """Of the model, its classes among it."""
    numbers: training_run.Arithmetic


def plan(config: FinetuneRun, data: TaskData, processes: int) -> Plan:
    """Return the fine-tuning resolved.

    Raises:
        UserError: something does not fit.
    """
    if config.deepspeed == BY_THE_MACHINE:
        config = config.model_copy(update={"deepspeed": _for_this_machine()})
    config = _with_evaluations(config, len(data.train.features))
    shape = shape_for(config.model, data.task)
    cls = KINDS[data.task.kind].model
    parameters = model_dir.count_parameters(shape, cls)
    numbers = training_run.work_out(config, shape, parameters, data.facts.length, processes, 0.0)
    mean = float(np.mean([len(feature.input_ids) for feature in data.train.features]))
    flops = flops_per_token(numbers.shape, round(mean), 0.0)
    return Plan(config, shape, dataclasses.replace(numbers, flops_per_token=flops))


def shape_for(model: str, task: Task) -> LertConfig:
    """Return the configuration of a model with the classes of a task.

    Raises:
        ModelError: it was fine-tuned for other classes.
    """
    folder = model_dir.resolve(model)
    before = model_dir.read_config(folder)
    # By its class, before its weights: a head of another size would be refused as a damaged file.
    tree = json.loads((folder / CONFIG).read_text("utf-8"))
    if any(str(name).endswith(_WITH_CLASSES) for name in tree.get("architectures") or ()):
        _refuse_other_classes(model, before, task)
    config = model_dir.read_config(folder, **label_names(task))
    config.tag_sets = None
    return config


def _refuse_other_classes(source: str, before: LertConfig, task: Task) -> None:
    if task.labels and before.id2label != label_names(task)["id2label"]:
        raise ModelError(
            f"{source}: it was fine-tuned for {', '.join(map(str, before.id2label.values()))}, not "
            f"for {task.title}; start from a pre-trained model"
        )


def label_names(task: Task) -> dict[str, Any]:
    """Return the keys of a configuration that name a task's classes; a span's has two outputs."""
    names = list(task.labels) or ["first", "last"]
    return {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}


def load(source: str, task: Task) -> PreTrainedModel:
    """Return a model to fine-tune, with a head for the task.

    Raises:
        ModelError: it cannot be read, or lacks an encoder.
    """
    cls = KINDS[task.kind].model
    before = model_dir.read_config(model_dir.resolve(source))
    model, report = model_dir.load(source, cls, **label_names(task))
    if missing := [n for n in report.random if n.startswith("bert.") and "pooler" not in n]:
        raise ModelError(
            f"{source}: it has no weights for {missing[0]}, so it is no pre-trained model; name one"
        )
    if not any(name.startswith(("classifier.", "qa_outputs.")) for name in report.random):
        _refuse_other_classes(source, before, task)
    return model


def run_seed(plan_of_all: Plan, seed: int, data: TaskData) -> dict[str, Any] | None:
    """Fine-tune with one seed and return what is in its scores; None where it was stopped.

    A seed that is finished is not trained again. Every process must call it.

    Raises:
        UserError: something does not fit; nothing has been changed then.
    """
    run = plan_of_all.run
    folder = run.output / f"seed-{seed}"
    # What is uploaded is the best seed's model, by the run of all.
    run = run.model_copy(update={"seed": seed, "output": folder, "push_to_hub": None})
    disk = Peers(run_folder.COLLECTIVE_SHARE * run.train.timeout_seconds)
    finished: dict[str, Any] | None = None
    if not run.overwrite:
        finished = disk.of_main(lambda: _finished(run))
    if finished is not None:
        return finished
    if run.overwrite or not disk.of_main((folder / run_lock.FINISHED).is_file):
        torch.manual_seed(seed)  # the same first weights of the head on every process
        model = load(run.model, data.task)
        training.set_up_model(run, model, lengths_vary=True)
        objective = FinetuneObjective(model, data.task.kind)
        with run_folder.prepared(run, data) as peers:
            trained = training.fit(
                run, objective, data, plan_of_all.numbers, peers,
                best_by=data.task.score if run.choose == "best" else None,
            )  # fmt: skip
            if trained is None:
                return None
            if distributed.is_main():
                (folder / SCORES).unlink(missing_ok=True)
                training.write_model(
                    run, data, model.config, trained, prefix="model", cls=type(model)
                )
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if distributed.is_main():
        _score(run, data)
    distributed.barrier()
    return disk.of_main(lambda: _finished(run))


def _score(run: FinetuneRun, data: TaskData) -> None:
    """Write what the best weights, as they stand in the model folder, reach on dev and test."""
    cls = KINDS[data.task.kind].model
    model, _ = model_dir.load(run.output / "model", cls)
    model.to(device())
    summary = json.loads((run.output / "summary.json").read_text("utf-8"))
    scores: dict[str, Any] = {"seed": run.seed, "config": dump(run)}
    for split, part in (("dev", data.dev), ("test", data.test)):
        if part is not None:
            scores[split], predictions = evaluate_model(model, data, part)
            write_json(run.output / f"predictions-{split}.json", predictions, exact=True)
    for key in ("steps", "chosen_step", "seconds", "processes", "versions"):
        scores[key] = summary[key]
    write_json(run.output / SCORES, scores)
    told = "  ".join(f"{name} {100 * scores['dev'][name]:.2f}" for name in data.task.metrics)
    logger.info("%s, seed %d: dev %s", data.task.title, run.seed, told)


def _finished(run: FinetuneRun) -> dict[str, Any] | None:
    """Return the scores of a seed that is finished, where it was asked for the same."""
    path = run.output / SCORES
    if not path.is_file():
        return None
    scores: dict[str, Any] = json.loads(path.read_text("utf-8"))
    ignored = ("output", "seeds", "overwrite", "resume", "keep_models", "push_to_hub")
    before, now = (
        {key: value for key, value in tree.items() if key not in ignored}
        for tree in (scores["config"], dump(run))
    )
    if changes := differences(before, now):
        raise ConfigError(
            f"{run.output}: this seed was trained with other settings ({'; '.join(changes)}); name "
            "another output folder, or say overwrite=true"
        )
    return scores


def _for_this_machine() -> Path:
    precision = "bf16" if multiplies_bf16(device()) else "fp32"
    return (
        Path("ds_configs") / f"{'zero1' if torch.cuda.is_available() else 'cpu'}_{precision}.json"
    )


def _with_evaluations(config: FinetuneRun, features: int) -> FinetuneRun:
    """Return the run with its steps, and with an evaluation and a checkpoint as often as asked."""
    config = training_run.with_steps(config, features)
    train = config.train
    each = max(1, round(features / train.batch_size / config.evaluations_per_epoch))
    every = min(each, train.steps)
    update = {"evaluate_every": every, "save_every": every if train.save_every else 0}
    return config.model_copy(update={"train": train.model_copy(update=update)})
