"""`lert-ds recover`: a pruned model folder and a corpus to the same model, trained again.

    objective="distillation"   the model that was pruned teaches, by TextBrewer's losses
    objective="pretraining"    LERT's own losses on the labels

Both are the trainings that there are, started from the pruned weights: this module only names their
keys in terms of a recovery. It is the one place where `prune` leans on `distill`. A vocabulary that
was pruned is no matter: the corpus is read in it, and the teacher loses the same pieces.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any, Literal

from distill import run as distill_run
from distill.run_config import DistillRun, TaughtRun
from lert_ds import cli, model_dir, pretrain, training_run
from lert_ds.config import Names, dump, parse
from lert_ds.errors import ConfigError
from prune.run import PRUNED_FROM

_OF_ANY_TRAINING = training_run.CorpusRun.model_fields

logger = logging.getLogger(__name__)


class RecoverRun(TaughtRun):
    """Configuration of `lert-ds recover`."""

    model: str
    """Pruned model folder to start from."""
    objective: Literal["distillation", "pretraining"] = "distillation"
    """Learn from a teacher and the labels, or from the labels alone."""
    teacher: Names = ()
    """Model folders to learn from; by default the one that was pruned."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    cli.add_training_arguments(parser, RecoverRun, Path(__file__).parent / "configs")


def run(arguments: argparse.Namespace) -> None:
    """Recover as configured, or say what that would take."""
    config = cli.read_config(RecoverRun, arguments)
    if config.objective == "pretraining":
        pretrain.start(as_pretraining(config), arguments)
    else:
        distill_run.start(as_distillation(config), arguments)


def as_distillation(config: RecoverRun) -> DistillRun:
    """Return the distillation that a recovery is: its student is the pruned model.

    Raises:
        ConfigError: no teacher is named, and the model's run.json names none that is there.
    """
    tree = dump(config)
    for key in ("objective", "model"):
        tree.pop(key)
    tree["teacher"] = list(config.teacher) or [_pruned_from(config.model)]
    tree["student"] = {"model": config.model}
    return parse(DistillRun, tree, "recover")


def as_pretraining(config: RecoverRun) -> pretrain.PretrainRun:
    """Return the pre-training that a recovery is: it starts from the pruned model.

    Raises:
        ConfigError: a teacher is named, which this objective would not ask.
    """
    if config.task is not None:
        raise ConfigError(
            f"task: objective=pretraining has none; say lert-ds finetune {config.task.name} "
            f"{config.model}, or objective=distillation"
        )
    if config.teacher:
        raise ConfigError(
            "teacher: objective=pretraining has none; leave it out, or say objective=distillation"
        )
    tree = {key: value for key, value in dump(config).items() if key in _OF_ANY_TRAINING}
    tree |= {"init_from": config.model, "lip": dump(config.lip)}
    return parse(pretrain.PretrainRun, tree, "recover")


def _pruned_from(model: str) -> str:
    """Return the model that was pruned, by run.json: as it is named there, or beside `model`."""
    path = model_dir.resolve(model) / model_dir.RUN
    record: Any = {}
    if path.is_file():
        try:
            record = json.loads(path.read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not JSON ({error}); name the teacher yourself") from error
    source = record.get(PRUNED_FROM) if isinstance(record, dict) else None
    if not isinstance(source, str):
        raise ConfigError(
            f"teacher = []: {path} does not say what {model} was pruned from; name the teacher, or "
            "say objective=pretraining"
        )
    logger.info("teacher: %s, of which %s was pruned", source, model)
    return source
