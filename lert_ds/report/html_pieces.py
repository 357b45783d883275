"""Pieces of the page that several of its parts are made of: sections, tables, colours of runs."""

from collections.abc import Iterable, Sequence
from html import escape

COLOURS = 8
"""In the palette; the ninth run has the colour of the first."""
UNKNOWN = '<span class="dim">–</span>'


def html_section(title: str, content: str, name: str) -> str:
    """Return a section of the page, nothing where there is no content."""
    return f'<section id="{name}"><h2>{title}</h2>\n{content}</section>' if content else ""


def swatch(place: int) -> str:
    """Return the colour of a run, by its place among all."""
    return f'<i class="swatch c{place % COLOURS}"></i>'


def run_heads(names: Iterable[str], columns: int = 1) -> str:
    """Return the heads of runs, each over some columns."""
    span = f' colspan="{columns}"' if columns > 1 else ""
    return "".join(
        f'<th scope="col"{span}>{swatch(place)}{escape(name)}</th>'
        for place, name in enumerate(names)
    )


def html_table(
    heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str = ""
) -> str:
    """Return a table of HTML cells: `heads` are rows of `<th>`, each row has a name and cells."""
    head = "".join(f"<tr>{row}</tr>" for row in heads)
    body = "\n".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead>{head}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
