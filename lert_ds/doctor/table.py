"""Rows as text: one table, and a last line that says what to do first."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from lert_ds.doctor.row import Row, Status

HOSTS_NAMED = 3
"""More hosts than this in one row are counted, not named; --json names all."""


def table(rows: Sequence[Row], hosts: Sequence[str], width: int | None = None) -> str:
    """Return the table and the last line.

    Args:
        rows: What was found, folded.
        hosts: All hosts; the column of hosts is there where they are more than one.
        width: Characters a line, to wrap what is longer; None does not wrap.
    """
    heads = [_head(row, hosts) for row in rows]
    widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    lines = []
    for row, head in zip(rows, heads, strict=True):
        start = "  ".join(f"{text:<{size}}" for text, size in zip(head, widths, strict=True)) + "  "
        blank = " " * len(start)
        lines += _wrapped(row.found, start, blank, width)
        if row.remedy:
            lines += _wrapped(row.remedy, f"{blank}→ ", f"{blank}  ", width)
    return "\n".join([*lines, "", verdict(rows)])


def verdict(rows: Sequence[Row]) -> str:
    """Return the last line: whether something would stop a run, and what to do first."""
    failed = [row for row in rows if row.status == "FAIL"]
    warned = [row for row in rows if row.status == "WARN"]
    warnings = f"{_counted(len(warned), 'warning')}" if warned else ""
    if failed:
        first = failed[0]
        where = f" ({_named(first.hosts)})" if first.hosts else ""
        rest = f"; {warnings}" if warned else ""
        return (
            f"{_counted(len(failed), 'finding')} would stop a run{rest}. "
            f"First, {first.check}{where}: {first.found}"
            + (f" → {first.remedy}" if first.remedy else "")
        )
    if warned:
        first = warned[0]
        return f"Nothing found would stop a run; {warnings}. First: {first.found} → {first.remedy}"
    return "Nothing found would stop a run."


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows as a JSON list."""
    return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)


def exit_code(rows: Sequence[Row]) -> int:
    """Return 1 where something would stop a run, else 0."""
    return int(any(row.status == "FAIL" for row in rows))


def _head(row: Row, hosts: Sequence[str]) -> list[str]:
    status: dict[Status, str] = {"OK": "ok", "WARN": "WARN", "FAIL": "FAIL", "SKIP": "-"}
    head = [status[row.status], row.check]
    if len(hosts) > 1:
        everywhere = set(row.hosts) == set(hosts)
        head.append("all" if everywhere else _named(row.hosts))
    return head


def _named(hosts: Sequence[str]) -> str:
    if len(hosts) <= HOSTS_NAMED:
        return ", ".join(hosts)
    return f"{hosts[0]} and {len(hosts) - 1} others"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _wrapped(text: str, first: str, others: str, width: int | None) -> list[str]:
    if width is None or width < len(others) + 30:
        return [first + text]
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]
