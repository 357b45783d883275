"""The record of a benchmark as one Markdown table: measures down, models across.

    | | teacher | student int8 |
    | :-- | --: | --: |
    | latency 1 × 128, 1 thread | 22.4 ms | 3.03 ms (7.4×) |

In brackets how many times smaller or faster than the first column: its value over this one's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lert_ds.text_table import markdown_table

UNMEASURED = "—"
_OF_MLM = ("mlm/loss", "mlm/accuracy", "mlm/unknown_share")

_METRICS = {"accuracy": "accuracy", "em": "EM", "f1": "F1"}

Record = Mapping[str, Any]
Row = tuple[str, list[str]]


def markdown(record: Record) -> str:
    """Return the table of a benchmark's summary.json, and below it what has to be said once."""
    heads = ["", *(_shown(column["name"]) for column in record["columns"])]
    rows = [heads, *([name, *cells] for name, cells in _rows(record))]
    return "\n".join([*markdown_table(rows), "", *_notes(record)]) + "\n"


def _shown(name: str) -> str:
    """Return a name as Markdown shows it, whatever HTML it holds."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def cell_name(cell: Record) -> str:
    """Return what a latency was measured on: `1 × 128, 1 thread`."""
    threads = cell["threads"]
    return f"{cell['batch_size']} × {cell['length']}, {threads} thread{'' if threads == 1 else 's'}"


def _rows(record: Record) -> Iterator[Row]:
    columns, cells = record["columns"], record["cells"]
    yield "runs in", [column["runtime"] for column in columns]
    yield "scores", [column["scores"] for column in columns]
    yield "parameters", _with_ratios([c["parameters"] for c in columns], "{:,}".format)
    yield "size", _with_ratios([c["bytes"] for c in columns], _mib)
    yield "memory, peak", _with_ratios([c["memory_bytes"] for c in columns], _mib)
    for cell in cells:
        yield (
            f"latency {cell_name(cell)}",
            [_latency(found, first=not place) for place, found in enumerate(cell["columns"])],
        )
    for key, name, show in (
        ("p95_ms", "p95", _milliseconds),
        ("tokens_per_second", "tokens/s", "{:,.0f}".format),
    ):
        for cell in cells:
            shown = [UNMEASURED if f is None else show(f[key]) for f in cell["columns"]]
            yield f"{name} {cell_name(cell)}", shown
    yield from _quality(columns)
    if record["task"] is not None:
        yield from _task(record["task"], columns)


def _task(task: Record, columns: Sequence[Record]) -> Iterator[Row]:
    """Yield what each column reaches, and in brackets how many points from the first."""
    for split in task["examples"]:
        for metric in task["metrics"]:
            values = [100 * column["task"][split][metric] for column in columns]
            shown = [f"{values[0]:.2f}"]
            shown += [f"{value:.2f} ({value - values[0]:+.2f})" for value in values[1:]]
            yield f"{task['title']} {split} {_METRICS[metric]}", shown


def _quality(columns: Sequence[Record]) -> Iterator[Row]:
    known = {name for column in columns for name in column["held_out"] or ()}
    tags = {name for name in known if name.endswith("/accuracy")} - set(_OF_MLM)
    for measure in [name for name in (*_OF_MLM, *sorted(tags)) if name in known]:
        show: Callable[[float], str] = "{:.4f}".format if measure.endswith("loss") else _percent
        values = [(column["held_out"] or {}).get(measure) for column in columns]
        name = measure.replace("mlm/", "MLM ").replace("/", " ").replace("_", " ")
        yield f"held-out {name}", [UNMEASURED if v is None else show(v) for v in values]


def _notes(record: Record) -> Iterator[str]:
    machine, config = record["machine"], record["config"]
    masked = f" with {100 * config['masked_share']:.0f} % of the pieces [MASK]"
    is_mlm = all(column["head"] == "mlm" for column in record["columns"])
    yield (
        f"Latency: median wall time of one batch (texts × tokens){masked if is_mlm else ''}; in "
        "brackets how many times "
        f"faster or smaller than {record['columns'][0]['name']}, for latency the median of "
        f"{config['rounds']} interleaved rounds. Memory: of the whole process, libraries too. "
        f"{machine['cpu']}."
    )
    short = sorted(
        {
            (column["name"], column["positions"])
            for column in record["columns"]
            if column["positions"] < max((cell["length"] for cell in record["cells"]), default=0)
        }
    )
    if short:
        told = ", ".join(f"{name} {positions}" for name, positions in short)
        yield f"{UNMEASURED}: more tokens than the model has positions ({told})."
    if (held_out := record["held_out"]) is not None:
        yield (
            f"Held out: {held_out['instances']:,} instances of {held_out['length']} tokens; pieces "
            "that a vocabulary lacks count as missed (MLM unknown share)."
        )
    if (task := record["task"]) is not None:
        told = " and ".join(f"{count:,} {split}" for split, count in task["examples"].items())
        yield (
            f"{task['title']}: in percent, on {told} examples; in brackets the points from "
            f"{record['columns'][0]['name']}."
        )


def _with_ratios(values: Sequence[float | None], show: Callable[[float], str]) -> list[str]:
    first, shown = values[0], []
    for place, value in enumerate(values):
        if value is None:
            shown.append(UNMEASURED)
        elif not place or not first:
            shown.append(show(value))
        else:
            shown.append(f"{show(value)} ({_ratio(first / value)})")
    return shown


def _latency(found: Record | None, *, first: bool) -> str:
    if found is None:
        return UNMEASURED
    shown = _milliseconds(found["median_ms"])
    return shown if first or found["ratio"] is None else f"{shown} ({_ratio(found['ratio'])})"


def _milliseconds(value: float) -> str:
    return f"{_digits(value)} ms"


def _mib(value: float) -> str:
    return f"{_digits(value / 2**20)} MiB"


def _ratio(value: float) -> str:
    return f"{value:.2f}×" if value < 10 else f"{value:.1f}×"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _digits(value: float) -> str:
    """Return a positive number with three digits, whole ones from 100."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
