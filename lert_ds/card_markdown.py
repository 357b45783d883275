r"""Values of anybody's JSON as Markdown: tables, sections, names that have no effect.

    code("a|b")  →  `a\|b`        number("7")  →  None        table(("a", "b"), [("1", "2")])

Whatever is not of the type it should be is left out. Names stand in code spans, where Markdown and
HTML in them are text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Tree = Mapping[str, Any]


def as_tree(value: Any) -> Tree:
    """Return a mapping as it is, and nothing for all else: run.json may be anybody's."""
    return value if isinstance(value, Mapping) else {}


def code(name: Any) -> str:
    """Return a name as Markdown shows it as it is, in a table too."""
    text = " ".join(str(name).split())[:200].replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else "–"


def plain(name: str) -> str:
    """Return a name as a title: without what Markdown or HTML would make of it."""
    return " ".join(name.split()).translate(str.maketrans("", "", "<>`*[]|\\"))


def strings(value: Any) -> tuple[str, ...]:
    """Return the texts under a key: one, or those of a list."""
    given: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    return tuple(name for name in given if isinstance(name, str))


def number(value: Any) -> int | float | None:
    """Return a finite number as it is, and None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def metrics(value: Any) -> dict[str, float]:
    """Return those entries of a mapping that are finite numbers."""
    return {
        str(name): float(found)
        for name, found in as_tree(value).items()
        if number(found) is not None
    }


def shown(value: Any) -> str:
    """Return a number as a table shows it."""
    found = number(value)
    return "–" if found is None else f"{found:,}"


def listed(sizes: Sequence[int]) -> str:
    """Return sizes by layer, a repeated one as `12 × 3`."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1][1] += 1
        else:
            runs.append([size, 1])
    return ", ".join(f"{size:,}" if count == 1 else f"{size:,} × {count}" for size, count in runs)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(title: str, text: str) -> str:
    """Return a section, or nothing where there is nothing to say."""
    return f"## {title}\n\n{text.rstrip()}\n" if text.strip() else ""
