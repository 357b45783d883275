"""`lert-ds distill`: a teacher folder and a corpus, or a task, to a student folder.

Read with `subjects.py` (what differs between the two), `objective.py` (the loss), `matches.py`
(what of it a configuration can say), `student.py` (the student's shape and first weights) and
`lert_ds/training.py` (what every training shares).
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from distill.distillation_config import DistillationConfig
from distill.matches import check_weights, describe_matches, resolve
from distill.objective import DistillationObjective
from distill.student import StudentConfig, make_student
from distill.subjects import OnCorpus, OnTask, Subject
from distill.teacher import Teacher, TeacherPrecision, load_teacher, place_teacher
from lert_ds import arithmetic, cli, distributed, model_dir, run_folder, training, training_run
from lert_ds.config import Names, Paths
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.finetune.settings import TaskConfig
from lert_ds.pretraining_objective import LipConfig
from lert_ds.train.engine import device
from lert_ds.training_data import DataFacts

logger = logging.getLogger(__name__)


class TaughtRun(training_run.CorpusRun):
    """The keys that every training with a teacher has."""

    corpus: Paths = ()
    """Corpus folder, or a list of them, to train on."""
    task: TaskConfig | None = None
    """A task to train on, in the place of a corpus: the teacher is a model fine-tuned for it."""
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

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if bool(self.corpus) == (self.task is not None):
            raise ValueError(
                "corpus and task are both given; keep one of them"
                if self.corpus
                else "corpus is missing; name a corpus folder, or a task to distil on"
            )
        return self


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
    subject: Subject
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
        distill(config)
        return
    processes = arguments.processes or distributed.world_size()
    plan = _plan(config, processes, ahead=True)
    cli.print_config(plan.run)
    print(_explain(plan, processes))  # noqa: T201


def distill(config: DistillRun) -> None:
    """Train the student and write its model folder; every process must call it.

    Raises:
        UserError: something does not fit; nothing has been changed then.
    """
    processes = distributed.world_size()
    plan = _plan(config, processes)
    config, subject = plan.run, plan.subject
    data = subject.data
    models = [
        load_teacher(source, data.tokenizer_folder, subject.model_class)
        for source in config.teacher
    ]
    torch.manual_seed(config.seed)  # the same first weights on every process
    student = make_student(config.student, plan.student, models[0])
    training.set_up_model(config, student)
    subject.prepare(student)
    with run_folder.prepared(config, data) as peers:
        logger.info(_explain(plan, processes))
        teachers = [
            Teacher(source, _place(config, model), weight)
            for source, model, weight in zip(
                config.teacher, models, config.weights_of_teachers(), strict=True
            )
        ]
        objective = DistillationObjective(
            student,
            teachers,
            config.distillation,
            subject.adaptor(config.train.steps),
            config.train.steps,
            labels_only=config.labels_only,
        )
        trained = training.fit(
            config,
            objective,
            data,
            plan.numbers,
            peers,
            best_by=subject.best_by,
            options=objective.parameter_options(config.train.learning_rate),
            lines=subject.teacher_lines(teachers, plan.numbers.micro_batch_size),
        )
        if trained is not None and distributed.is_main():
            training.write_model(
                config, data, student.config, trained, prefix="student", cls=type(student)
            )
        distributed.barrier()


def open_subject(config: DistillRun, *, ahead: bool = False) -> Subject:
    """Return what a distillation is about, in the vocabulary of its student.

    Args:
        config: The distillation.
        ahead: Plan with what is known where the corpus is not there yet.

    Raises:
        UserError: a file or folder of the data is missing or wrong.
    """
    if config.task is not None:
        return OnTask.open(config.task, config.student.model or config.teacher[0])
    if ahead and not any(folder.exists() for folder in config.corpus):
        pieces = model_dir.read_config(config.teacher[0]).vocab_size
        facts = DataFacts.assumed(config.student.positions)
        facts, corpora = dataclasses.replace(facts, vocabulary_size=pieces), None
    else:
        corpora = training_run.open_corpora(config)
        if config.student.model is not None:  # its vocabulary may have been pruned
            corpora = corpora.in_vocabulary_of(config.student.model)
        facts = corpora.facts
    tasks = tuple(task for task in config.lip.tasks if facts.tag_sets[task])
    if left := [task for task in config.lip.tasks if task not in tasks]:
        logger.warning("%s: no tags for %s", config.corpus[0], ", ".join(left))
    lip = config.lip.model_copy(update={"tasks": tasks})
    return OnCorpus(facts, corpora, lip, _asked_tasks(config.distillation, tasks))


def _place(config: DistillRun, model: PreTrainedModel) -> PreTrainedModel:
    placed = place_teacher(
        model, device(), config.teacher_precision, partitioned=config.teacher_partitioned
    )
    pieces = ", a piece a process" if config.teacher_partitioned else ""
    logger.info("teacher: computes in %s%s", str(placed.dtype).removeprefix("torch."), pieces)
    return placed


def _asked_tasks(config: DistillationConfig, tasks: Sequence[str]) -> dict[str, float]:
    """Return the linguistic tasks that the teachers are asked about, with their weights."""
    weights = {task: float(getattr(config, task)) for task in tasks}
    return {task: weight for task, weight in weights.items() if weight}


def _plan(config: DistillRun, processes: int, *, ahead: bool = False) -> _Plan:
    """Return the run resolved, having checked all that can be before a weight is read.

    Raises:
        UserError: something does not fit.
    """
    check_weights(config.distillation, config.labels_only)
    subject = open_subject(config, ahead=ahead)
    facts = subject.facts
    config = training_run.with_steps(config, facts.instances)
    if isinstance(subject, OnCorpus):
        config = config.model_copy(update={"lip": subject.lip})
    teachers = [subject.check_teacher(source) for source in config.teacher]
    _check_given_student(config)
    student = subject.student_shape(config.student, teachers[0])
    if facts.length > student.max_position_embeddings:
        raise ConfigError(
            f"{config.corpus[0] if config.corpus else 'task'}: instances of {facts.length} tokens, "
            f"but the student has {student.max_position_embeddings} positions; set "
            f"student.positions={facts.length}"
        )
    distillation = resolve(config.distillation, student, teachers)
    config = config.model_copy(update={"distillation": distillation})
    masked_share = config.masked_share(facts.length) if config.task is None else 0.0
    numbers = training_run.work_out(
        config,
        student,
        model_dir.count_parameters(student, subject.model_class),
        facts.length,
        processes,
        masked_share,
    )
    forward = sum(
        arithmetic.flops_per_token(training_run.shape_of(one), facts.length, masked_share) / 3
        for one in teachers
    )  # a forward is a third of a training step
    if not config.labels_only:
        flops = numbers.flops_per_token + forward
        numbers = dataclasses.replace(numbers, flops_per_token=flops)
    return _Plan(config, subject, teachers, student, numbers)


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
    rows = [training_run.explain(config, plan.numbers, plan.subject.facts, processes)]
    for source, shape, weight in zip(
        config.teacher, plan.teachers, config.weights_of_teachers(), strict=True
    ):
        parameters = model_dir.count_parameters(shape, plan.subject.model_class)
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
