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
from typing import cast

import torch
from transformers import PreTrainedModel

from distill import caching
from distill.distillation_config import DistillationConfig
from distill.matches import check_weights, describe_matches, resolve
from distill.objective import DistillationObjective
from distill.run_config import DistillRun
from distill.student import make_student
from distill.subjects import OnCorpus, OnTask, Subject
from distill.taught_batches import RepeatingCorpora
from distill.teacher import Teacher, load_teacher, place_teacher, precision_on
from distill.teacher_cache import Layout, TeacherCache
from lert_ds import arithmetic, cli, distributed, model_dir, run_folder, training, training_run
from lert_ds.config import dump
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.kernels import products
from lert_ds.kernels.apply import Kernels
from lert_ds.train.engine import device
from lert_ds.train.peers import Peers
from lert_ds.training_data import DataFacts, TrainingData

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A run whose every number is known and checked, and of which no weight was read."""

    run: DistillRun
    """With explicit matches, and the tasks that the corpus has tags for."""
    subject: Subject
    teachers: Sequence[LertConfig]
    student: LertConfig
    numbers: training_run.Arithmetic
    cache: Layout | None
    """What is kept of a masked instance; None without a cache."""


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
    kernels = training.set_up_model(config, student, lengths_vary=config.task is not None)
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
        cache = _open_cache(plan, peers)
        if cache is not None:
            objective.keep_answers(cache)
        try:
            trained = training.fit(
                config,
                objective,
                _training_data(plan, kernels, cache),
                plan.numbers,
                peers,
                best_by=subject.best_by,
                options=objective.parameter_options(config.train.learning_rate),
                lines=subject.teacher_lines(teachers, plan.numbers.micro_batch_size),
            )
        finally:
            if cache is not None:
                cache.write()
        if trained is not None and distributed.is_main():
            training.write_model(
                config, data, student.config, trained, prefix="student", cls=type(student)
            )
        distributed.barrier()


def _open_cache(plan: _Plan, peers: Peers) -> TeacherCache | None:
    """Return the cache of a run's teachers, or None where it has none."""
    config = plan.run
    if plan.cache is None or config.labels_only:
        return None
    corpora = cast(OnCorpus, plan.subject).data
    settings = {
        "precision": precision_on(device(), config.teacher_precision),
        "temperature": config.distillation.temperature if plan.cache.top_k else None,
        "corpus": corpora.fingerprint,
        "masking": dump(config.masking),
        "masks": config.teacher_cache_masks,
        "documents_apart": corpora.batching.part_documents,
        "seed": config.seed,
    }
    return caching.open_cache(
        cast(Path, config.teacher_cache),
        plan.cache,
        config.teacher,
        settings,
        len(corpora.train),
        len(corpora.train)
        * config.teacher_cache_masks
        * caching.instance_bytes(plan.cache, plan.subject.facts, plan.numbers.masked_share),
        peers,
    )


def _training_data(plan: _Plan, kernels: Kernels, cache: TeacherCache | None) -> TrainingData:
    """Return a run's data: batches for its kernels, and masks that come round where it says so."""
    if not isinstance(plan.subject, OnCorpus):
        return plan.subject.data
    corpora = plan.subject.data.for_kernels(kernels)
    if plan.cache is None:
        return corpora
    return RepeatingCorpora(**vars(corpora), masks=plan.run.teacher_cache_masks, cache=cache)


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
        model,
        device(),
        config.teacher_precision,
        partitioned=config.teacher_partitioned,
        compiled=config.teacher_compile,
        onednn=products.takes_onednn(config.kernels.products),
    )
    pieces = ", a piece a process" if config.teacher_partitioned else ""
    precision = precision_on(device(), config.teacher_precision)
    logger.info("teacher: computes in %s%s", precision, pieces)
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
    cache = None
    if config.teacher_cache is not None:
        heads = {"mlm": facts.vocabulary_size} | {
            task: len(facts.tag_sets[task]) for task in cast(OnCorpus, subject).task_weights
        }
        heads = heads if distillation.kd_loss_weight else {}  # else no logits are learnt
        kind = caching.kind_of(config.teacher_cache_logits, distillation)
        cache = caching.layout_of(distillation, teachers, heads, kind, config.teacher_cache_top_k)
        epochs = config.train.steps * config.train.batch_size / (facts.instances or 1)
        forward *= min(1.0, config.teacher_cache_masks / epochs)  # those after them read
    if not config.labels_only:
        flops = numbers.flops_per_token + forward
        numbers = dataclasses.replace(numbers, flops_per_token=flops)
    return _Plan(config, subject, teachers, student, numbers, cache)


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
    if plan.cache is not None:
        told = caching.describe(
            plan.cache, config.teacher_cache_masks, plan.subject.facts, plan.numbers.masked_share
        )
        rows.append(f"{'teacher cache':<17} {config.teacher_cache}: {told}")
    if config.labels_only:
        rows.append(f"{'learns':<17} from the labels alone (labels_only)")
    else:
        rows.append(describe_matches(config.distillation))
    return "\n".join(rows)
