"""Fine-tunings beside published results: the table of LERT's paper, in the form of its cells.

                              CMRC 2018 dev                OCNLI dev
    Fine-tuned here
      lert-small/model        62.0 (61.5) / 80.1 (79.9)¹   70.3 (69.8)
    Published: base models
      LERT-base               69.2 (68.4) / 88.1 (87.9)²   78.2 (77.5)²

    ¹ trained on trial.json, 1,002 of the task's 10,142 examples
    ² README of LERT, …

In percent, the best of the seeds and in brackets their mean. There is a column for each task and
split that a fine-tuning has a result on. This is what is said; `scoreboard_text.py` says how.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

from lert_ds.finetune.tasks import TASKS
from lert_ds.report.finetune_results import SPLITS, Finetune
from lert_ds.report.published import MODELS, TRAIN_EXAMPLES, Column, published
from lert_ds.report.runs import telling_names

OWN = "Fine-tuned here"
WHOLE = 0.98
"""Share of a task's examples from which on a training counts as one on all of them: copies of a
task differ by some that are empty or twice there."""


class Cell(NamedTuple):
    """A figure of the table."""

    text: str
    notes: tuple[int, ...] = ()
    """Numbers of its footnotes, from 1."""


class Row(NamedTuple):
    """A model."""

    name: str
    cells: list[Cell | None]
    """One for each column; None is unknown."""


class Group(NamedTuple):
    """Rows that stand together."""

    title: str
    is_own: bool
    """Whether they were fine-tuned here, and not read in a publication."""
    rows: list[Row]


@dataclass(frozen=True)
class Scoreboard:
    """A table, whatever it is written in."""

    heads: list[tuple[str, str]]
    """Of each column the task with the split, and its metrics."""
    groups: list[Group]
    says: str
    """What the figures are."""
    footnotes: list[str]


@dataclass
class _Footnotes:
    """Texts by the number under which they are told."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def scoreboard(finetunes: Sequence[Finetune]) -> Scoreboard:
    """Return the table of fine-tunings, one at least, and of what is published on their tasks."""
    columns = [
        Column(name, split)
        for name in TASKS
        for split in SPLITS
        if any(one.task.name == name and split in one.record["scores"] for one in finetunes)
    ]
    notes = _Footnotes()
    groups = [Group(OWN, True, _own_rows(finetunes, columns, notes))]
    for title, models in MODELS.items():
        rows = [_published_row(model, columns, notes) for model in models]
        if known := [row for row in rows if any(row.cells)]:
            groups.append(Group(title, False, known))
    says = _says(finetunes) + _published_elsewhere(columns)
    return Scoreboard([_head(column) for column in columns], groups, says, notes.texts)


def _head(column: Column) -> tuple[str, str]:
    task = TASKS[column.task]
    names = {"accuracy": "accuracy", "em": "EM", "f1": "F1"}
    return f"{task.title} {column.split}", " / ".join(names[metric] for metric in task.metrics)


def _says(finetunes: Sequence[Finetune]) -> str:
    counts = sorted({one.seeds for one in finetunes})
    splits = {split for one in finetunes for split in one.record["scores"]} & set(SPLITS)
    told = " and ".join(split for split in SPLITS if split in splits)
    alone = "; of one seed both are its own" if 1 in counts else ""
    return (
        f"In percent, the best and in brackets the mean of {_seeds_text(counts)} on the {told} "
        f"set{alone}. Each run's weights are those that did best on dev."
    )


def _published_elsewhere(columns: Sequence[Column]) -> str:
    """Return which models have figures on these tasks that no column is for: LERT-small's, say."""
    tasks = {column.task for column in columns}
    absent = [
        model
        for model, figures in published().items()
        if not figures.keys() & set(columns) and any(column.task in tasks for column in figures)
    ]
    return f" Published on other splits alone: {', '.join(absent)}." if absent else ""


def _seeds_text(counts: Sequence[int]) -> str:
    if len(counts) == 1:
        return f"{counts[0]} seed{'' if counts[0] == 1 else 's'}"
    return f"{counts[0]} to {counts[-1]} seeds"


def _own_rows(
    finetunes: Sequence[Finetune], columns: Sequence[Column], notes: _Footnotes
) -> list[Row]:
    """Return a row for each model; further ones where it was fine-tuned for a task again."""
    by_start: dict[PurePath, list[dict[str, Finetune]]] = {}
    for one in finetunes:
        rows = by_start.setdefault(PurePath(one.start), [])
        place = next((row for row in rows if one.task.name not in row), None)
        if place is None:
            rows.append(place := {})
        place[one.task.name] = one
    found = []
    for name, rows in zip(telling_names(list(by_start), 2), by_start.values(), strict=True):
        for row in rows:
            first = next(iter(row.values()))
            which = f"{name} in {first.name}" if len(rows) > 1 else name
            counts = sorted({one.seeds for one in row.values()})
            cells = [_own_cell(row.get(column.task), column, notes) for column in columns]
            found.append(Row(f"{which}, {_seeds_text(counts)}", cells))
    return found


def _own_cell(one: Finetune | None, column: Column, notes: _Footnotes) -> Cell | None:
    if one is None or column.split not in one.record["scores"]:
        return None
    shown = []
    for metric in one.task.metrics:
        score = one.score(column.split, metric)
        assert score is not None
        shown.append(f"{100 * score[0]:.1f} ({100 * score[1]:.1f})")
    numbers = tuple(notes.number(text) for text in _differences(one, column.split))
    return Cell(" / ".join(shown), numbers)


def _differences(one: Finetune, split: str) -> Iterator[str]:
    """Yield what keeps a result from being one on the task as its owners made it."""
    files: Mapping[str, str] = one.record["files"]
    title = one.task.title
    source = files.get(split)
    if source is None:
        yield f"{title} {split}: held out from {files.get('train')}, the owners' set is another"
    elif source.removesuffix(".gz") not in one.task.files[split]:  # type: ignore[index]
        yield f"{title} {split}: read from {source}, not the owners' file of that split"
    count, whole = one.record["examples"].get("train"), TRAIN_EXAMPLES[one.task.name]
    if isinstance(count, int) and count < WHOLE * whole:
        yield (
            f"{title}: trained on {count:,} examples of {files.get('train')}, where the task has "
            f"{whole:,}"
        )


def _published_row(model: str, columns: Sequence[Column], notes: _Footnotes) -> Row:
    figures = published()[model]
    cells: list[Cell | None] = []
    for column in columns:
        figure = figures.get(column)
        if figure is None:
            cells.append(None)
            continue
        source = figure.source
        told = f"{source.title}, {source.url} at {source.commit}: {source.says}"
        cells.append(Cell(figure.text, (notes.number(told),)))
    return Row(model, cells)
