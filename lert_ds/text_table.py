"""Tables of text whose columns are aligned for who reads the text itself."""

import unicodedata
from collections.abc import Sequence


def columns_of(text: str) -> int:
    """Return the columns of a terminal that `text` takes: two for a Han character."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as the lines of a Markdown table: the first is the head, names stand left."""
    widths = [max(3, *map(columns_of, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, _line(rule, widths))
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    blanks = [" " * (w - columns_of(cell)) for cell, w in zip(cells, widths, strict=True)]
    name, *rest = zip(cells, blanks, strict=True)
    return f"| {' | '.join([name[0] + name[1], *(blank + cell for cell, blank in rest)])} |"
