"""`lert-ds distill`: a teacher folder and a corpus to a student folder, task-agnostic.

Read with `objective.py` (the loss), `matches.py` (what of it a configuration can say), `student.py`
(the student's shape and first weights) and `lert_ds/training.py` (what every training shares).
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from distill.adaptor import PretrainingAdaptor
from distill.distillation_config import DistillationConfig
from distill.matches import check_weights, describe_matches, resolve
from distill.objective import DistillationObjective
from distill.student import StudentConfig, make_student, student_shape
from distill.teacher import (
    Teacher,
    TeacherPrecision,
    check_teacher,
    load_teacher,
    place_teacher,
    teacher_lines,
)
from lert_ds import arithmetic, cli, distributed, model_dir, run_folder, training, training_run
from lert_ds.config import Names
from lert_ds.configuration_lert import LertConfig
from lert_ds.corpora import Corpora
from lert_ds.errors import ConfigError
from lert_ds.labels import TagSets
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.pretraining_objective import LertLoss, LipConfig, train_heads
from lert_ds.train.engine import device
from lert_ds.training_data import DataFacts

logger = logging.getLogger(__name__)


class TaughtRun(training_run.CorpusRun):
    """The keys that every training with a teacher has."""

    teacher: Names = ()
    """Model folders or hub names to learn from, one or a list of them."""
    teacher_weights: Annotated[tuple[float, ...], Field(strict=False)] = ()
    """Of several teachers: how much the KD to each counts; by default the same, 1 in all."""
    teacher_precision: TeacherPrecision = "auto"
    """auto: bf16 where the machine multiplies it itself, else fp32."""
    teacher_partitioned: bool = False
    """Keep a piece of each teacher a process (ZeRO-3), for one that no device holds whole."""
    distillation: DistillationConfig = DistillationConfig()
    """What is learnt from the teacher: TextBrewer's configuration, and what LERT adds to it."""
    lip: LipConfig = LipConfig()
    """Linguistic tasks, and how their weights grow."""


class DistillRun(TaughtRun):
    """Configuration of `lert-ds distill`."""

    teacher: Names
    """Model folder or hub name to learn from, or a list of them."""
    student: StudentConfig = StudentConfig()
    """Its shape and its first weights."""
    labels_only: bool = False
    """Train the same student without its teacher, for comparison: same start, batches, dropout."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.teacher:
            raise ValueError("teacher is empty; name a model folder")
        given = len(self.teacher_weights)
        if given and given != len(self.teacher):
            raise ValueError(
                f"teacher_weights has {given} numbers for {len(self.teacher)} teachers; "
                "give each one"
            )
        if min(self.teacher_weights, default=1) < 0 or (given and not sum(self.teacher_weights)):
            raise ValueError("teacher_weights: no weight may be below 0, nor all of them 0")
        return self

    def weights_of_teachers(self) -> tuple[float, ...]:
        """Return the weight of each teacher's KD."""
        return self.teacher_weights or (1 / len(self.teacher),) * len(self.teacher)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A run whose every number is known and checked, and of which no weight was read."""

    run: DistillRun
    """With explicit matches, and the tasks that the corpus has tags for."""
    facts: DataFacts
    teachers: Sequence[LertConfig]
    student: LertConfig
    numbers: training_run.Arithmetic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    cli.add_training_arguments(parser, DistillRun, Path(__file__).parent / "configs")


def run(arguments: argparse.Namespace) -> None:
    """Distil as configured, or say what that would take."""
    start(cli.read_config(DistillRun, arguments), arguments)


def start(config: DistillRun, arguments: argparse.Namespace) -> None:
    """Distil, or with --dry-run say what that would take."""
    if not arguments.dry_run:
        distill(config, training_run.open_corpora(config))
        return
    processes = arguments.processes or distributed.world_size()
    if any(folder.exists() for folder in config.corpus):
        corpora = _in_its_vocabulary(config, training_run.open_corpora(config))
        plan = _plan(config, corpora.facts, corpora.tokenizer_folder, processes)
    else:
        facts = DataFacts.assumed(config.student.positions)
        pieces = model_dir.read_config(config.teacher[0]).vocab_size
        facts = dataclasses.replace(facts, vocabulary_size=pieces)
        plan = _plan(config, facts, None, processes)
    cli.print_config(plan.run)
    print(_explain(plan, processes))  # noqa: T201


def distill(config: DistillRun, corpora: Corpora) -> None:
    """Train the student and write its model folder; every process must call it.

    Raises:
        UserError: something does not fit; nothing has been changed then.
    """
    processes = distributed.world_size()
    corpora = _in_its_vocabulary(config, corpora)
    plan = _plan(config, corpora.facts, corpora.tokenizer_folder, processes)
    config = plan.run
    models = [load_teacher(source, corpora.tokenizer_folder) for source in config.teacher]
    torch.manual_seed(config.seed)  # the same first weights on every process
    student = make_student(config.student, plan.student, models[0])
    training.set_up_model(config, student)
    train_heads(student, config.lip.tasks)
    with run_folder.prepared(config, corpora) as peers:
        logger.info(_explain(plan, processes))
        teachers = [
            Teacher(source, _place(config, model), weight)
            for source, model, weight in zip(
                config.teacher, models, config.weights_of_teachers(), strict=True
            )
        ]
        loss = LertLoss(config.lip, config.train.steps)
        objective = DistillationObjective(
            student,
            teachers,
            config.distillation,
            PretrainingAdaptor(loss, _asked_tasks(config)),
            config.train.steps,
            labels_only=config.labels_only,
        )
        trained = training.fit(
            config,
            objective,
            corpora,
            plan.numbers,
            peers,
            options=objective.parameter_options(config.train.learning_rate),
            lines=_lines(config, corpora, teachers, plan.numbers.micro_batch_size),
        )
        if trained is not None and distributed.is_main():
            training.write_model(config, corpora, student.config, trained, prefix="student")
        distributed.barrier()


def _in_its_vocabulary(config: DistillRun, corpora: Corpora) -> Corpora:
    """Return the corpora in the vocabulary of the student, where that is a pruned one."""
    given = config.student.model
    return corpora if given is None else corpora.in_vocabulary_of(given)


def _place(config: DistillRun, model: LertForPreTraining) -> LertForPreTraining:
    placed = place_teacher(
        model, device(), config.teacher_precision, partitioned=config.teacher_partitioned
    )
    pieces = ", a piece a process" if config.teacher_partitioned else ""
    logger.info("teacher: computes in %s%s", str(placed.dtype).removeprefix("torch."), pieces)
    return placed


def _asked_tasks(config: DistillRun) -> dict[str, float]:
    """Return the linguistic tasks that the teachers are asked about, with their weights."""
    weights = {task: float(getattr(config.distillation, task)) for task in config.lip.tasks}
    return {task: weight for task, weight in weights.items() if weight}


def _lines(
    config: DistillRun, corpora: Corpora, teachers: Sequence[Teacher], micro_batch_size: int
) -> dict[str, dict[str, float]]:
    if corpora.valid is None:
        return {}
    batches = [corpora.evaluation(micro_batch_size) for _ in teachers]
    tag_sets: TagSets = {str(task): corpora.train.tag_sets[task] for task in config.lip.tasks}
    return teacher_lines(teachers, batches, tag_sets)


def _plan(config: DistillRun, facts: DataFacts, tokenizer: Path | None, processes: int) -> _Plan:
    """Return the run resolved, having checked all that can be before a weight is read.

    Raises:
        UserError: something does not fit.
    """
    config = training_run.with_steps(config, facts.instances)
    check_weights(config.distillation, config.labels_only)
    tasks = tuple(task for task in config.lip.tasks if facts.tag_sets[task])
    if left := [task for task in config.lip.tasks if task not in tasks]:
        logger.warning("%s: no tags for %s", config.corpus[0], ", ".join(left))
    config = config.model_copy(update={"lip": config.lip.model_copy(update={"tasks": tasks})})
    teachers = [
        check_teacher(source, facts, tokenizer, _asked_tasks(config)) for source in config.teacher
    ]
    _check_given_student(config)
    student = student_shape(config.student, teachers[0], facts, tasks)
    if facts.length > student.max_position_embeddings:
        raise ConfigError(
            f"{config.corpus[0]}: instances of {facts.length} tokens, but the student has "
            f"{student.max_position_embeddings} positions; set student.positions={facts.length}"
        )
    distillation = resolve(config.distillation, student, teachers)
    config = config.model_copy(update={"distillation": distillation})
    numbers = training_run.work_out(
        config,
        student,
        model_dir.count_parameters(student),
        facts.length,
        processes,
        config.masked_share(facts.length),
    )
    forward = sum(
        arithmetic.flops_per_token(training_run.shape_of(one), facts.length, numbers.masked_share)
        / 3
        for one in teachers
    )  # a forward is a third of a training step
    if not config.labels_only:
        flops = numbers.flops_per_token + forward
        numbers = dataclasses.replace(numbers, flops_per_token=flops)
    return _Plan(config, facts, teachers, student, numbers)


def _check_given_student(config: DistillRun) -> None:
    if config.student.model is None:
        return
    folder = model_dir.resolve(config.student.model).resolve()
    for source in config.teacher:
        if model_dir.resolve(source).resolve() == folder:
            raise ConfigError(
                f"student.model = {config.student.model}: this is the teacher; name a smaller "
                "model, or leave it out and give the student's shape"
            )


def _explain(plan: _Plan, processes: int) -> str:
    config = plan.run
    rows = [training_run.explain(config, plan.numbers, plan.facts, processes)]
    for source, shape, weight in zip(
        config.teacher, plan.teachers, config.weights_of_teachers(), strict=True
    ):
        parameters = model_dir.count_parameters(shape)
        rows.append(
            f"{'teacher':<17} {source}: {parameters:,} parameters, "
            f"{shape.num_hidden_layers} layers of {shape.hidden_size}, weight {weight:.3g}; "
            f"besides the memory above {parameters * 2 / 2**30:.2f} GiB in bf16, twice that in fp32"
        )
    if config.labels_only:
        rows.append(f"{'learns':<17} from the labels alone (labels_only)")
    else:
        rows.append(describe_matches(config.distillation))
    return "\n".join(rows)
