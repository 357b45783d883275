"""One finding: what was looked at, on which hosts, what was found, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Status = Literal["OK", "WARN", "FAIL", "SKIP"]
"""FAIL: a run would stop. WARN: it may, or be slow. SKIP: not looked at, and the row says why."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    check: str
    """What was looked at."""
    status: Status
    found: str
    remedy: str = ""
    """What to do; empty where there is nothing to do."""
    hosts: tuple[str, ...] = ()
    """Where; empty where it is about no host, such as the configuration."""


def fold(rows: Iterable[Row]) -> list[Row]:
    """Return `rows` with those that differ in the host alone made one, where the first stood."""
    folded: dict[Row, tuple[str, ...]] = {}
    for row in rows:
        key = replace(row, hosts=())
        before = folded.get(key, ())
        folded[key] = before + tuple(host for host in row.hosts if host not in before)
    return [replace(row, hosts=hosts) for row, hosts in folded.items()]
