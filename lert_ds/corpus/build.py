"""A configuration to a corpus folder: the stages of `steps` as datatrove pipelines, in order.

    read ─ filters ─ count_pieces | learn      Each stage is a pipeline of an executor (local, Slurm
    read ─ filters ─ annotate | divide         or Ray) with a task for each split of the plan, or
    assemble | finish                          one task; a completed task is not run again.

datatrove brings the executors, their bookkeeping and the filters; what a task does is in `steps`.
"""

import contextlib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import loguru._better_exceptions
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline import filters as datatrove_filters
from datatrove.utils.logging import logger as datatrove_log

from lert_ds.corpus import outputs, steps
from lert_ds.corpus.assemble import assemble
from lert_ds.corpus.finish import finish
from lert_ds.corpus.progress import watch
from lert_ds.corpus.settings import LEARN, ExecutorConfig
from lert_ds.corpus.work import Work
from lert_ds.corpus.workers import run_tasks
from lert_ds.errors import ConfigError, CorpusError, UserError


@dataclass(frozen=True)
class Stage:
    """One pipeline."""

    name: str
    title: str
    """What the user is told."""
    tasks: int
    pipeline: list[Callable[..., Any]]


@dataclass
class ReadStep:
    """First step of a pipeline: the documents of the task's split."""

    root: Path
    tally: steps.Tally
    sample: bool = False

    def __call__(self, _: Any, rank: int, world_size: int) -> Iterator[Document]:
        """Yield datatrove's documents."""
        for document in steps.read(Work(self.root), rank, self.tally, self.sample):
            metadata = {"number": document.number, "line": document.line}
            yield Document(text=document.text, id=str(document.number), metadata=metadata)


@dataclass
class FilterStep:
    """One of datatrove's filters; what it drops is counted."""

    arguments: dict[str, Any]
    tally: steps.Tally

    def __call__(self, data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
        """Yield the documents that pass."""
        name = self.arguments["name"]
        there = 0

        def counted() -> Iterator[Document]:
            nonlocal there
            for document in data:
                there += 1
                yield document

        passed = 0
        for document in make_filter(self.arguments).run(counted(), rank, world_size):
            passed += 1
            yield document
        if there > passed:
            self.tally.counts[f"document dropped by {name}"] += there - passed


@dataclass
class TaskStep:
    """Last step of a pipeline, or its only one: a function of `steps`."""

    stage: str
    root: Path
    function: Callable[..., None]
    takes: Literal["documents", "task", "work"]
    """(work, task, documents), (work, task), or (work)."""
    tally: steps.Tally | None = None
    """Where the function also takes what the steps before it have counted."""

    def __call__(self, data: Iterable[Document], rank: int, world_size: int) -> None:
        """Do the task; a user's error is also written down, for executors that swallow it."""
        work = Work(self.root)
        arguments = (work, rank, data)[: ("work", "task", "documents").index(self.takes) + 1]
        try:
            self.function(*arguments, *((self.tally,) if self.tally else ()))
            if self.stage != outputs.FINISH:  # it records before it moves the corpus away
                outputs.record(work, self.stage, rank)
        except UserError as error:
            work.write("error.json", {"message": str(error)})
            raise


def stages(work: Work) -> list[Stage]:
    """Return the stages that a configuration needs, in order."""
    config, root, tasks = work.config, work.root, work.plan.tasks

    def reading(
        name: str, title: str, function: Callable[..., None], sample: bool = False
    ) -> Stage:
        tally = steps.Tally()
        filters = [FilterStep(arguments, tally) for arguments in config.filters]
        counted = tally if function is steps.annotate else None
        last = TaskStep(name, root, function, "documents", counted)
        return Stage(name, title, tasks, [ReadStep(root, tally, sample), *filters, last])

    def once(name: str, title: str, function: Callable[..., None]) -> Stage:
        return Stage(name, title, 1, [TaskStep(name, root, function, "work")])

    def each(name: str, title: str, number: int, function: Callable[..., None]) -> Stage:
        return Stage(name, title, number, [TaskStep(name, root, function, "task")])

    plan = []
    if config.tokenizer == LEARN:
        plan.append(reading("pieces", "counting characters", steps.count_pieces_of, sample=True))
        plan.append(once("learn", "learning the vocabulary", steps.learn))
    if config.annotator.tag_sets == "collect":
        plan.append(reading("tags", "collecting tags", steps.count_tags))
        plan.append(once("rank", "ranking tags", steps.rank))
    if config.deduplicate == "exact":
        plan.append(reading("sign", "hashing sentences", steps.sign_sentences))
        buckets = work.plan.buckets
        plan.append(each("compare", "comparing sentences", buckets, steps.compare_bucket))
    plan.append(reading("annotate", f"annotating ({config.annotator.kind})", steps.annotate))
    plan.append(once("divide", "dividing documents", steps.divide))
    plan.append(each("assemble", "aligning and packing", tasks, assemble))
    plan.append(once(outputs.FINISH, "writing the manifest", finish))
    return plan


def run_stages(work: Work, executor: ExecutorConfig) -> bool:
    """Run all stages that are not completed; return whether they are done, or only submitted.

    Raises:
        UserError: of any task, as it stands; the finished tasks stay.
    """
    if executor.kind == "slurm":
        _submit(work, executor)
        return False
    for stage in stages(work):
        folder = work.root / "logs" / stage.name
        folder.mkdir(parents=True, exist_ok=True)
        with watch(stage.title, stage.tasks, lambda folder=folder: _completed(folder)):  # type: ignore[misc]
            if executor.kind == "ray":
                _run_on_ray(work, stage, folder, executor)
            else:
                _run_here(stage, folder, executor)
    return True


class _LocalExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's executor over worker processes of ours; what its tasks print goes to a file."""

    title = ""

    def run(self) -> None:
        """Run the tasks of this machine that are not completed."""
        first = self.local_rank_offset
        tasks = self.get_incomplete_ranks(range(first, first + self.local_tasks))
        if (workers := min(self.workers, len(tasks))) > 1:
            run_tasks(self.run_task, tasks, workers, self.title, __name__)
            return
        for task in tasks:
            deepcopy(self).run_task(task)  # its steps count for one task

    def run_task(self, task: int) -> None:
        """Do one task and mark it as completed."""
        with _quiet(Path(self.logging_dir.path)):
            self._run_for_rank(task)


def _run_here(stage: Stage, folder: Path, executor: ExecutorConfig) -> None:
    runner = _LocalExecutor(
        pipeline=stage.pipeline,
        tasks=stage.tasks,
        workers=executor.tasks_at_once(stage.tasks),
        logging_dir=str(folder),
        **executor.arguments,
    )
    runner.title = stage.title
    with _quiet(folder):
        runner.run()


def _look_up_libraries_once() -> None:
    """Let loguru look for Python's folders once a process, and not for each file that it writes.

    A task opens three, and each time 72 folders are worked out: 60 ms of a task, which were a third
    of one that reads 100 kB.
    """
    formatter: Any = loguru._better_exceptions.ExceptionFormatter
    find = getattr(formatter, "_get_lib_dirs", None)
    if find is not None and not hasattr(find, "cache_info"):
        formatter._get_lib_dirs = staticmethod(functools.cache(find))


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """Send standard error, and datatrove's log, to a file of the folder."""
    _look_up_libraries_once()
    with (folder / "stderr.log").open("a", encoding="utf-8") as file:
        datatrove_log.remove()
        try:
            with contextlib.redirect_stderr(file):
                datatrove_log.add(file)
                yield
        finally:
            datatrove_log.remove()


def _run_on_ray(work: Work, stage: Stage, folder: Path, executor: ExecutorConfig) -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            'executor.kind = "ray": the package ray is not installed: pip install ray'
        )
    import ray  # type: ignore[import-not-found]

    ray.init(ignore_reinit_error=True, log_to_driver=False)
    runner = RayPipelineExecutor(
        pipeline=stage.pipeline,
        tasks=stage.tasks,
        workers=executor.workers or -1,
        logging_dir=str(folder),
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=executor.mem_per_cpu_gb,
        gpus_per_task=executor.gpus_per_task if stage.name == "annotate" else 0,
        **executor.arguments,
    )
    (work.root / "error.json").unlink(missing_ok=True)
    with _quiet(folder):
        runner.run()
    if missing := runner.get_incomplete_ranks(skip_completed=True):  # it only logs failures
        if (work.root / "error.json").exists():
            raise CorpusError(work.read("error.json")["message"])
        raise RuntimeError(f"{stage.title}: tasks {missing[:5]} failed; see {folder}")


def _submit(work: Work, executor: ExecutorConfig) -> None:
    """Submit all stages as job arrays, each after the one before."""
    arguments = dict(executor.arguments)
    activate = Path(sys.prefix) / "bin" / "activate"
    if activate.exists() and not arguments.keys() & {"env_command", "condaenv", "venv_path"}:
        arguments["venv_path"] = str(activate)
    last: Any = None
    for stage in stages(work):
        folder = work.root / "logs" / stage.name
        folder.mkdir(parents=True, exist_ok=True)
        last = SlurmPipelineExecutor(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            workers=executor.workers or -1,
            time=executor.time,
            partition=executor.partition,
            cpus_per_task=executor.cpus_per_task,
            mem_per_cpu_gb=executor.mem_per_cpu_gb,
            gpus_per_task=executor.gpus_per_task if stage.name == "annotate" else 0,
            job_name=f"lert-{stage.name}",
            logging_dir=str(folder),
            depends=last,
            **arguments,
        )
    try:
        with _quiet(work.root / "logs"):
            last.run()
    except FileNotFoundError as error:
        raise ConfigError(
            f'executor.kind = "slurm": there is no {error.filename} here; run it where jobs are '
            "submitted"
        ) from error


def _completed(folder: Path) -> int:
    return sum(1 for _ in (folder / "completions").glob("*"))


def filter_names() -> list[str]:
    """Return the names of datatrove's filters that a configuration can name."""
    names = {
        name
        for name, value in vars(datatrove_filters).items()
        if inspect.isclass(value) and hasattr(value, "filter")
    }
    return sorted(names - {"LambdaFilter"})  # it takes a function


def make_filter(arguments: Mapping[str, Any]) -> Any:
    """Return the filter that a table of the configuration names.

    Raises:
        ConfigError: there is no such filter, or it cannot take the arguments.
    """
    name = arguments.get("name")
    names = filter_names()
    if name not in names:
        raise ConfigError(f"filters: there is no filter {name!r}; there are {', '.join(names)}")
    rest = {key: value for key, value in arguments.items() if key != "name"}
    try:
        return getattr(datatrove_filters, str(name))(**rest)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"filters: {name}: {error}") from error
