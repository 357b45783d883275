"""What `lert-ds benchmark` wrote → a section of the page: a table, and size and time against loss.

The figures are read, not trusted: names are escaped, and what is no number is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lert_ds.errors import UserError
from lert_ds.report.metrics import BrokenLineError, json_number, json_object
from lert_ds.report.scatter import COLOURS, Point, scatter
from lert_ds.report.summary import short_number

SUMMARY, KIND = "summary.json", "benchmark"
_LOSS = "Held-out MLM loss"
_METRICS = {"accuracy": "accuracy", "em": "EM", "f1": "F1"}
"""Of a task, as they are written; the last that a task has is plotted."""
_UNKNOWN = '<span class="dim">–</span>'


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as its folder tells it."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    """Content of summary.json."""


def is_benchmark(folder: Path) -> bool:
    """Return whether a folder holds the result of a benchmark, and not of a training."""
    path = folder / SUMMARY
    try:
        return path.is_file() and json_object(path.read_bytes()).get("kind") == KIND
    except (OSError, BrokenLineError):
        return False


def read_benchmark(folder: Path) -> Benchmark:
    """Return the benchmark in `folder`.

    Raises:
        UserError: what it holds is not what a benchmark writes.
    """
    path = folder / SUMMARY
    record = json_object(path.read_bytes())
    columns, cells = record.get("columns"), record.get("cells")
    good = (
        isinstance(columns, list)
        and columns
        and all(isinstance(column, dict) and "name" in column for column in columns)
        and isinstance(cells, list)
        and all(_is_cell(cell, len(columns)) for cell in cells)
    )
    if not good:
        raise UserError(
            f"{path}: columns and cells are not those of a benchmark; run lert-ds benchmark again"
        )
    return Benchmark(folder.resolve().name, folder, record)


def _is_cell(cell: Any, columns: int) -> bool:
    if not isinstance(cell, dict) or not isinstance(cell.get("columns"), list):
        return False
    keys = ("threads", "batch_size", "length")
    return len(cell["columns"]) == columns and all(type(cell.get(key)) is int for key in keys)


def benchmark_section(benchmark: Benchmark) -> str:
    """Return the table and the plots of a benchmark as HTML."""
    record = benchmark.record
    measure, quality = _plotted(record)
    plots = scatter(_points(record, _sizes(record), quality), "Size, MiB", measure)
    for cell in _shown_cells(record):
        title = f"Latency of {cell_name(cell)}, ms"
        plots += scatter(_points(record, _cell_values(cell, "median_ms"), quality), title, measure)
    note = '<p class="dim">No held-out loss was measured, no task either: nothing to plot.</p>'
    shown = f'<div class="plots">{plots}</div>' if plots else note
    return (
        f"<section><h2>Benchmark {escape(benchmark.name)}</h2>\n{_table(record)}"
        f'<p class="dim">{escape(_machine(record))}</p>{shown}</section>'
    )


def cell_name(cell: Mapping[str, Any]) -> str:
    """Return what a latency was measured on: `1 × 128, 1 thread`."""
    threads = cell["threads"]
    plural = "" if threads == 1 else "s"
    return f"{cell['batch_size']} × {cell['length']}, {threads} thread{plural}"


def _table(record: Mapping[str, Any]) -> str:
    columns = record["columns"]
    heads = "".join(
        f'<th scope="col"><i class="swatch c{place % COLOURS}"></i>{escape(str(c["name"]))}</th>'
        for place, c in enumerate(columns)
    )
    rows = [
        ("Runs in", [escape(str(column.get("runtime", ""))) for column in columns]),
        ("Parameters", _compared([_number(c, "parameters") for c in columns], "{:,.0f}".format)),
        ("Size, MiB", _compared(_sizes(record), short_number)),
        ("Peak memory, MiB", _compared([_mib(c, "memory_bytes") for c in columns], short_number)),
    ]
    for cell in record["cells"]:
        values, ratios = _cell_values(cell, "median_ms"), _cell_values(cell, "ratio")
        found = [_pair(*pair) for pair in zip(values, [None, *ratios[1:]], strict=True)]
        rows.append((f"Latency {escape(cell_name(cell))}, ms", found))
    measures = dict.fromkeys(name for column in columns for name in _object(column, "held_out"))
    for measure in measures:
        values = [_number(_object(column, "held_out"), measure) for column in columns]
        shown = [_UNKNOWN if value is None else short_number(value) for value in values]
        rows.append((f"Held-out {escape(measure)}", shown))
    for name, values in _task_scores(record):
        rows.append((escape(name), [_from(values[0], value, n) for n, value in enumerate(values)]))
    body = "\n".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        '<div class="scroll"><table class="numbers results"><thead>'
        f"<tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _task_scores(record: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Return what columns reach on the splits of a task, in percent, by what it is."""
    task, found = _object(record, "task"), []
    for split in _object(task, "examples"):
        for metric in (name for name in _METRICS if name in _names(task)):
            shares = [
                _number(_object(_object(c, "task"), split), metric) for c in record["columns"]
            ]
            values = [None if share is None else 100 * share for share in shares]
            found.append((f"{task.get('title')} {split} {_METRICS[metric]}, %", values))
    return found


def _names(task: Mapping[str, Any]) -> Sequence[Any]:
    found = task.get("metrics")
    return found if isinstance(found, list) else ()


def _from(first: float | None, value: float | None, place: int) -> str:
    """Return a score and how many points it is from the first one."""
    if value is None:
        return _UNKNOWN
    if first is None or not place:
        return f"{value:.2f}"
    return f'{value:.2f} <small class="dim">{value - first:+.2f}</small>'


def _plotted(record: Mapping[str, Any]) -> tuple[str, list[float | None]]:
    """Return what is plotted over size and time: held-out losses, or else scores of a task."""
    losses = [_number(_object(column, "held_out"), "mlm/loss") for column in record["columns"]]
    scores = _task_scores(record)
    return (_LOSS, losses) if any(loss is not None for loss in losses) or not scores else scores[-1]


def _machine(record: Mapping[str, Any]) -> str:
    machine = record.get("machine")
    config = record.get("config")
    said = [str(machine.get("cpu", ""))] if isinstance(machine, dict) else []
    if isinstance(config, dict) and "rounds" in config:
        said.append(f"medians of {config['rounds']} interleaved rounds")
    said.append("× is how many times smaller or faster than the first column")
    return " · ".join(part for part in said if part)


def _shown_cells(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the cells to plot: of single texts, for each length, on the fewest threads."""
    cells = [cell for cell in record["cells"] if cell["batch_size"] == 1]
    fewest = min((cell["threads"] for cell in cells), default=0)
    return [cell for cell in cells if cell["threads"] == fewest]


def _points(
    record: Mapping[str, Any], values: Sequence[float | None], quality: Sequence[float | None]
) -> list[Point]:
    found = []
    columns = zip(record["columns"], values, quality, strict=True)
    for place, (column, x, y) in enumerate(columns):
        if x is not None and x > 0 and y is not None:
            found.append(Point(str(column["name"]), place, x, y))
    return found


def _compared(values: Sequence[float | None], show: Callable[[float], str]) -> list[str]:
    first = values[0]
    shown = []
    for place, value in enumerate(values):
        ratio = first / value if place and first and value else None
        shown.append(_pair(value, ratio, show))
    return shown


def _pair(
    value: float | None, ratio: float | None, show: Callable[[float], str] = short_number
) -> str:
    if value is None:
        return _UNKNOWN
    if ratio is None:
        return show(value)
    return f'{show(value)} <small class="dim">{ratio:.2f}×</small>'


def _sizes(record: Mapping[str, Any]) -> list[float | None]:
    return [_mib(column, "bytes") for column in record["columns"]]


def _cell_values(cell: Mapping[str, Any], key: str) -> list[float | None]:
    return [_number(f, key) if isinstance(f, dict) else None for f in cell["columns"]]


def _mib(column: Mapping[str, Any], key: str) -> float | None:
    value = _number(column, key)
    return None if value is None else value / 2**20


def _object(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _number(tree: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of a JSON object; None for anything else."""
    value = json_number(None if isinstance(tree.get(key), bool) else tree.get(key))
    return value if value is not None and math.isfinite(value) else None
