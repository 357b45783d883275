"""`lert-ds benchmark`: model folders and edge folders side by side: size, speed, memory, quality.

    | | teacher | edge int8 |
    | :-- | --: | --: |
    | size | 18.8 MiB | 1.02 MiB (18.4×) |
    | latency 1 × 128, 1 thread | 3.12 ms | 0.42 ms (7.4×) |

    benchmark/table.md      the table
    benchmark/summary.json  every figure behind it, the configuration, the machine

What is timed is the filling of [MASK]s in real text, or of fine-tuned models the answer to it; with
task.name= these are judged on the task, too. Each column runs in a process of its own, and they
take turns (`turns.py`). PyTorch scores the vocabulary at the [MASK]s alone, and so does a graph
that was exported with masked_positions; other graphs score every position.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lert_ds import cli, config, tokenizer_files
from lert_ds.config import Config, Names, Paths
from lert_ds.errors import ConfigError
from lert_ds.files import refuse_finished, write_json, write_whole, write_whole_folder
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.tasks import find_task
from lert_ds.machine import description, usable_cores
from prune.benchmark.columns import Column, find_columns
from prune.benchmark.heads import MLM, refuse_others
from prune.benchmark.inputs import SHORTEST, Text
from prune.benchmark.quality import HeldOut
from prune.benchmark.table import markdown
from prune.benchmark.task_quality import Scores, TaskQuality
from prune.benchmark.turns import Cell, measure, summarize, working
from prune.benchmark.worker import Arrays
from prune.vocabulary.texts import read_text

SUMMARY, TABLE = "summary.json", "table.md"
KIND = "benchmark"
"""What summary.json says it is; `lert-ds report` looks for it."""
_PACKAGES = ("torch", "transformers", "onnxruntime", "numpy")
_FILES = frozenset({SUMMARY, TABLE, "report.html"})

log = logging.getLogger(__name__)

Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)]


class BenchmarkConfig(Config):
    """Configuration of `lert-ds benchmark`."""

    models: Names
    """Model folders, hub names and edge folders, in the order of the columns; a ratio is against
    the first. An edge folder has a column for each graph, fp32 and int8."""
    output: Path
    """Folder to write summary.json and table.md to."""
    names: Names = ()
    """What to call each of models; by default the end of its path."""
    overwrite: bool = False
    """Replace a benchmark that is there."""
    batch_sizes: Counts = (1, 32)
    """Texts at once."""
    lengths: Counts = (32, 128, 512)
    """Tokens of a text; left empty where a model has fewer positions."""
    threads: Counts = (1, 2)
    """Threads that a model may use."""
    rounds: int = Field(5, ge=1)
    """Turns of each model at each measurement."""
    seconds: float = Field(0.2, gt=0)
    """Time of one turn; one call at least."""
    masked_share: float = Field(0.15, gt=0, le=1)
    """Share of a text's pieces that are [MASK]: those that are filled."""
    text: Path | None = None
    """Text to fill, UTF-8; by default a sample of the package."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What model folders compute in."""
    corpus_valid: Paths = ()
    """Held-out corpus folders, for the losses and accuracies; by default these are left out."""
    instances: int | None = Field(None, ge=1)
    """How many instances of them, rounded up to whole batches of 16; by default all."""
    task: TaskConfig | None = None
    """Of models that were fine-tuned: the task whose dev and test files they are judged on, in the
    place of corpus_valid."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.models:
            raise ValueError("models is empty; name model folders and edge folders to compare")
        if min(self.lengths) < SHORTEST:
            raise ValueError(f"lengths: {min(self.lengths)} has no room for a piece; from 3 on")
        for key in ("batch_sizes", "lengths", "threads"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} = {list(values)}: name each once")
        return self

    def cells(self) -> list[Cell]:
        """Return every measurement, in the order of the table."""
        return [Cell(*one) for one in product(self.threads, self.batch_sizes, self.lengths)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    cli.add_config_arguments(parser, BenchmarkConfig, Path(__file__).parents[1] / "configs")


def run(arguments: argparse.Namespace) -> None:
    """Measure as configured, or say what that would measure."""
    settings = cli.read_config(BenchmarkConfig, arguments)
    if arguments.dry_run:
        cli.print_config(settings)
        columns = _find_columns(settings)
        print("\n".join(_explain(settings, columns)))  # noqa: T201
        return
    record = benchmark(settings)
    print(markdown(record), end="")  # noqa: T201


def benchmark(settings: BenchmarkConfig) -> dict[str, Any]:
    """Measure, write the output folder whole or not at all, and return what summary.json says.

    Raises:
        UserError: a model, the corpus or the output cannot be used.
    """
    _refuse_output(settings)
    started = time.perf_counter()
    columns = _find_columns(settings)
    text = read_text(settings.text)
    texts = [Text(tokenizer_files.load(column.folder), text) for column in columns]
    has_losses = settings.task is None and settings.corpus_valid
    held_out = HeldOut(settings.corpus_valid, settings.instances) if has_losses else None
    for line in _explain(settings, columns):
        log.info(line)
    quality = _evaluate(held_out, columns)
    task = None if settings.task is None else TaskQuality(settings.task)
    scores = _evaluate_task(task, columns)
    cells, memory = _measure(settings, columns, texts)
    record = {
        "kind": KIND,
        "columns": [
            {
                "name": column.name,
                "model": column.source,
                "runtime": column.runtime,
                "graph": column.graph,
                "head": column.head,
                "scores": column.scores,
                "masked_positions": column.masked_positions,
                "positions": column.positions,
                "vocabulary_size": column.config.vocab_size,
                "parameters": column.parameters,
                "bytes": column.bytes,
                "memory_bytes": memory[place],
                "held_out": quality[place],
                "task": scores[place],
            }
            for place, column in enumerate(columns)
        ],
        "cells": cells,
        "held_out": None if held_out is None else held_out.record(),
        "task": None if task is None else task.record(),
        "machine": description(_PACKAGES),
        "seconds": round(time.perf_counter() - started, 1),
        "config": config.dump(settings),
    }
    with write_whole_folder(settings.output) as folder:
        write_json(folder / SUMMARY, record)
        table = markdown(record).encode("utf-8")
        write_whole(folder / TABLE, lambda file: file.write(table))
    return record


def _find_columns(settings: BenchmarkConfig) -> list[Column]:
    """Return the columns, which compute the same and what is asked of them."""
    columns = find_columns(settings.models, settings.names, settings.precision)
    kind = None if settings.task is None else find_task(settings.task.name).kind
    refuse_others([(column.source, column.head) for column in columns], kind)
    if settings.corpus_valid and settings.task is None and columns[0].head != MLM:
        raise ConfigError(
            f"corpus_valid: {columns[0].source} is a model for {columns[0].head}, which fills no "
            "[MASK]; leave it out, or name its task with task.name="
        )
    return columns


def _evaluate(held_out: HeldOut | None, columns: Sequence[Column]) -> list[dict[str, float] | None]:
    if held_out is None:
        return [None] * len(columns)
    for column in columns:
        held_out.view(column)  # a tokenizer that does not fit is told before anything is measured
    found: list[dict[str, float] | None] = []
    for column in columns:
        found.append(held_out.evaluate(column))
        log.info("%s: held-out MLM loss %.4f", column.name, (found[-1] or {})["mlm/loss"])
    return found


def _evaluate_task(task: TaskQuality | None, columns: Sequence[Column]) -> list[Scores | None]:
    if task is None:
        return [None] * len(columns)
    for column in columns:
        task.check(column)  # what does not fit is told before anything is measured
    found: list[Scores | None] = []
    for column in columns:
        found.append(scores := task.evaluate(column))
        told = ", ".join(
            f"{split} {name} {100 * scores[split][name]:.2f}"
            for split in scores
            for name in task.task.metrics
        )
        log.info("%s: %s %s", column.name, task.task.title, told)
    return found


def _measure(
    settings: BenchmarkConfig, columns: Sequence[Column], texts: Sequence[Text]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the records of the cells, and the peak memory of each column in bytes."""

    def inputs_of(place: int, cell: Cell) -> Arrays | None:
        if cell.length > columns[place].positions:
            return None
        share = settings.masked_share if columns[place].head == MLM else None
        return texts[place].inputs(cell.batch_size, cell.length, share)

    told = time.monotonic()

    def tell(done: int, planned: int) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            log.info("%d of %d measurements", done, planned)

    with working({column.name: column.command for column in columns}) as workers:
        timings = measure(
            workers,
            settings.cells(),
            inputs_of,
            rounds=settings.rounds,
            seconds=settings.seconds,
            tell=tell,
        )
        memory = [int(worker.ask("peak_memory")) for worker in workers]
    cells = [
        {**cell._asdict(), "columns": summarize(cell, found)} for cell, found in timings.items()
    ]
    return cells, memory


def _explain(settings: BenchmarkConfig, columns: Sequence[Column]) -> Iterator[str]:
    """Yield what is going to be measured, and about how long that takes."""
    width = max(len(column.name) for column in columns)
    for column in columns:
        parameters = "" if column.parameters is None else f"{column.parameters:,} parameters, "
        yield (
            f"{column.name:<{width}}  {column.runtime}, {parameters}"
            f"{column.bytes / 2**20:,.2f} MiB, {column.positions} positions"
        )
    cells = settings.cells()
    turns = settings.rounds * sum(
        cell.length <= column.positions for cell in cells for column in columns
    )
    yield (
        f"{len(cells)} measurements of {len(columns)} columns in {settings.rounds} rounds: at "
        f"least {turns * settings.seconds:,.0f} s; longer where one call takes more than "
        f"{settings.seconds:g} s"
    )
    if (most := max(settings.threads)) > (cores := usable_cores()):
        yield f"threads = {most}, but {cores} core may be used: those figures say little"
    if settings.task is not None:
        unread = "; corpus_valid is not read" if settings.corpus_valid else ""
        yield f"task {settings.task.name}: every column is judged on its dev and test files{unread}"
    elif not settings.corpus_valid:
        yield "corpus_valid = []: no losses, no accuracies"


def _refuse_output(settings: BenchmarkConfig) -> None:
    folder = settings.output
    refuse_finished(folder, SUMMARY, settings.overwrite)
    if folder.is_dir() and (others := {path.name for path in folder.iterdir()} - _FILES):
        raise ConfigError(
            f"output = {folder}: it holds other files than a benchmark's ({min(others)}); "
            "name another"
        )
