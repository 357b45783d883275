"""Runs → one HTML page that needs no network: tables in HTML, curves as data for a small script.

Everything that comes from a run is escaped; the page's own policy lets no script run but ours, so
that a configuration from a stranger is shown and never executed.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from lert_ds import __version__
from lert_ds.report.benchmark_section import Benchmark, benchmark_section
from lert_ds.report.curves import MAX_EVENTS, is_exact, payload, sections
from lert_ds.report.finetune_results import Finetune
from lert_ds.report.html_pieces import UNKNOWN, html_section, html_table, run_heads, swatch
from lert_ds.report.metrics import Event
from lert_ds.report.runs import Run
from lert_ds.report.scoreboard import scoreboard
from lert_ds.report.scoreboard_text import scoreboard_section
from lert_ds.report.summary import (
    count,
    differences,
    direction,
    duration,
    flatten,
    short_number,
    summarize,
)

GENERATOR = '<meta name="generator" content="lert-ds report">'
"""Tells a page of ours from any other file: what may be written over."""

_TEMPLATES = Path(__file__).parent / "templates"


def page(
    runs: Sequence[Run],
    title: str,
    benchmarks: Sequence[Benchmark] = (),
    finetunes: Sequence[Finetune] = (),
) -> str:
    """Return the page of `runs`, `benchmarks` and `finetunes`, in their order, as HTML."""
    summaries = [summarize(run) for run in runs]
    script, style = _template("report.js"), _template("report.css")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    counts = {"fine-tuning": len(finetunes), "run": len(runs), "benchmark": len(benchmarks)}
    what = ", ".join(_counted(number, name) for name, number in counts.items() if number)
    body = [
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="dim">{what} · written {now} by lert-ds {escape(__version__)}</p></header>',
        *([scoreboard_section(scoreboard(finetunes))] if finetunes else []),
        *map(benchmark_section, benchmarks),
    ]
    if runs:
        body += [
            _notes(runs),
            '<div class="pair">',
            html_section("Runs", _facts(summaries), "facts"),
            html_section("Final and best values", _results(summaries), "results"),
            "</div>",
            _toolbar(runs),
            _charts(runs),
            html_section("Configuration", _configuration(runs), "configuration"),
            html_section("Events", _events(runs), "events"),
            f'<script type="application/json" id="data">{inline_json(payload(runs))}</script>',
            f"<script>{script}</script>",
        ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            GENERATOR,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">',
            f"<style>{style}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def inline_json(tree: Any) -> str:
    """Return JSON that can stand in a script element: no text of it can end or open one."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 is escaped too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _template(name: str) -> str:
    """Return a template without its indentation and its lines of comment: a fifth of its size."""
    lines = (line.strip() for line in (_TEMPLATES / name).read_text("utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/* ")))


def _notes(runs: Sequence[Run]) -> str:
    items = "".join(
        f"<li><b>{escape(run.name)}</b>: {escape(note)}</li>" for run in runs for note in run.notes
    )
    return f'<ul class="notes">{items}</ul>' if items else ""


def _facts(summaries: Sequence[Mapping[str, Any]]) -> str:
    rows: dict[str, list[str]] = {}
    for summary in summaries:
        for name, text in _facts_of(summary).items():
            rows.setdefault(name, []).append(escape(text) if text else UNKNOWN)
    known = [(name, cells) for name, cells in rows.items() if set(cells) != {UNKNOWN}]
    heads = f"<td></td>{run_heads(str(summary['name']) for summary in summaries)}"
    return html_table([heads], known, "numbers")


def _facts_of(summary: Mapping[str, Any]) -> dict[str, str]:
    def known(key: str, show: Any) -> str:
        return "" if summary[key] is None else show(summary[key])

    planned = summary["steps_planned"]
    of_planned = f" of {count(planned)}" if isinstance(planned, int) else ""
    versions = ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    return {
        "Folder": summary["folder"],
        "Steps": f"{count(summary['steps'])}{of_planned}",
        "Samples": known("samples", count),
        "Tokens": known("tokens", count),
        "Tokens a second (median)": known("tokens_per_second", short_number),
        "MFU (median)": known("mfu", lambda share: f"{share:.1%}"),
        "Memory (largest)": known("memory_gib", lambda gib: f"{gib:.2f} GiB"),
        "Skipped steps": known("skipped_steps", count),
        "Wall time": known("wall_seconds", duration),
        "Started": known("started", lambda text: f"{text[:10]} {text[11:16]} UTC"),
        "Parameters": known("parameters", count),
        "Git commit": known("git_commit", lambda commit: commit[:12]),
        "Versions": versions,
    }


def _results(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of final and best values of what is better lower or higher."""
    metrics = {metric for summary in summaries for metric in summary["metrics"]}
    shown = [name for part in sections(list(metrics)) for name in part.metrics if direction(name)]
    kinds_of = {
        metric: {kind for one in summaries for kind in one["metrics"].get(metric, {})} - {"train"}
        for metric in shown
    }
    rows = [
        _result_row(summaries, metric, kind)
        for metric in shown
        for kind in sorted(kinds_of[metric] or {"valid"})
    ]
    if not rows:
        return ""
    columns = '<th scope="col">train</th><th scope="col">held-out</th><th scope="col">best</th>'
    names = [str(summary["name"]) for summary in summaries]
    heads = [f"<td></td>{run_heads(names, 3)}", f"<td></td>{columns * len(names)}"]
    return html_table(heads, rows, "numbers results")


def _result_row(
    summaries: Sequence[Mapping[str, Any]], metric: str, kind: str
) -> tuple[str, list[str]]:
    values = [summary["metrics"].get(metric, {}) for summary in summaries]
    sign = direction(metric)
    bests = [sign * value[kind]["best"] for value in values if kind in value]
    cells = []
    for value in values:
        train, held = value.get("train"), value.get(kind)
        cells.append(short_number(train["final"]) if train else UNKNOWN)
        cells.append(short_number(held["final"]) if held else UNKNOWN)
        if held is None:
            cells.append(UNKNOWN)
            continue
        wins = len(bests) > 1 and sign * held["best"] == max(bests)
        best = short_number(held["best"])
        at = f' <small class="dim">@ {count(held["best_step"])}</small>'
        cells.append((f"<b>{best}</b>" if wins else best) + at)
    lines = {
        f"{label} {short_number(number)}": None
        for summary in summaries
        for label, number in summary["baselines"].get(metric, {}).items()
    }
    name = escape(metric if kind == "valid" else f"{metric} ({kind})")
    small = f'<br><small class="dim">{escape(" · ".join(lines))}</small>' if lines else ""
    return name + small, cells


def _toolbar(runs: Sequence[Run]) -> str:
    chips = "".join(
        f'<button type="button" class="chip" data-run="{place}" aria-pressed="true">'
        f"{swatch(place)}{escape(run.name)}</button>"
        for place, run in enumerate(runs)
    )
    return (
        f'<div class="toolbar"><div class="chips">{chips}'
        '<span class="keys" id="keys"></span></div><div class="switches">'
        '<span class="axes" id="axes" role="group" aria-label="Horizontal axis"></span>'
        '<label>Smoothing <input type="range" id="smooth" min="0" max="20" step="0.5" value="0">'
        '<output id="smooth-value">off</output></label>'
        '<label><input type="checkbox" id="log"> Log losses</label>'
        '<input type="search" id="filter" placeholder="Find a chart" aria-label="Find a chart">'
        '<button type="button" id="reset" hidden>Reset zoom</button></div></div>'
    )


def _charts(runs: Sequence[Run]) -> str:
    metrics = [metric for run in runs for metric in run.metrics.curves]
    if not metrics:
        return '<p class="dim">No values were reported yet: there are no curves to draw.</p>'
    parts = [
        "<noscript><p>The curves need JavaScript; the tables do not.</p></noscript>",
        '<main id="charts">',
    ]
    for section in sections(metrics):
        figures = "".join(
            f'<figure data-metric="{escape(metric)}"{" data-loss" * section.is_loss}'
            f"{' data-exact' * is_exact(metric)}><figcaption>{escape(metric)}</figcaption></figure>"
            for metric in section.metrics
        )
        parts.append(
            f'<section><h2>{escape(section.title)}</h2><div class="grid">{figures}</div></section>'
        )
    return "\n".join([*parts, "</main>"])


def _configuration(runs: Sequence[Run]) -> str:
    """Return the keys that differ, and each whole configuration folded away."""
    parts = []
    if len(runs) > 1:
        rows = [
            (escape(key), [UNKNOWN if text is None else escape(text) for text in values])
            for key, values in differences([run.config for run in runs]).items()
        ]
        heads = f"<td></td>{run_heads(run.name for run in runs)}"
        same = '<p class="dim">The configurations do not differ.</p>'
        parts.append(html_table([heads], rows, "config") if rows else same)
    for place, run in enumerate(runs):
        flat = flatten(run.config)
        if flat:
            rows = [(escape(key), [escape(text)]) for key, text in flat.items()]
            summary = f"{swatch(place)}{escape(run.name)}: all {len(flat)} keys"
            table = html_table([], rows, "config")
            parts.append(f"<details><summary>{summary}</summary>{table}</details>")
    return "\n".join(parts)


def _events(runs: Sequence[Run]) -> str:
    parts = []
    for place, run in enumerate(runs):
        if not run.metrics.events:
            continue
        rows = [
            (UNKNOWN if event.step is None else count(event.step), _event_cells(event, run))
            for event in run.metrics.events[:MAX_EVENTS]
        ]
        more = len(run.metrics.events) - len(rows)
        rest = f'<p class="dim">{more:,} more in {escape(str(run.folder))}</p>' if more else ""
        heads = '<th scope="col">Step</th><th scope="col">After</th><th scope="col">Event</th>'
        opened = " open" if len(run.metrics.events) <= 20 else ""
        summary = f"{swatch(place)}{escape(run.name)}: {len(run.metrics.events):,}"
        table = html_table([heads], rows, "event")
        parts.append(f"<details{opened}><summary>{summary}</summary>{table}{rest}</details>")
    return "\n".join(parts)


def _event_cells(event: Event, run: Run) -> list[str]:
    since = UNKNOWN
    if event.time is not None and run.metrics.started is not None:
        since = duration(event.time - run.metrics.started)
    return [since, escape(event.message)]
