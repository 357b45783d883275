"""The table of results as HTML, for the page, and as Markdown, for a README.

    | | OCNLI dev<br>accuracy |
    | :-- | --: |
    | **Fine-tuned here** | |
    | **lert-small/model, 5 seeds** | **70.3 (69.8)** |
    | **Published: base models** | |
    | LERT-base | 78.2 (77.5) ¹ |

What was fine-tuned here is bold, and what is published is not and names its source.
"""

from html import escape

from lert_ds.report.scoreboard import Cell, Row, Scoreboard
from lert_ds.text_table import markdown_table

_UNKNOWN = "–"
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_TITLE = "Results on tasks"


def scoreboard_section(board: Scoreboard) -> str:
    """Return the table as a section of the page."""
    heads = "".join(
        f'<th scope="col">{escape(title)}<br><small class="dim">{escape(metrics)}</small></th>'
        for title, metrics in board.heads
    )
    body = ""
    for group in board.groups:
        body += (
            f'<tr><th scope="rowgroup" colspan="{len(board.heads) + 1}"><b>{escape(group.title)}'
            "</b></th></tr>"
        )
        body += "\n".join(_html_row(row, is_own=group.is_own) for row in group.rows)
    notes = "".join(
        f'<p class="dim">{_mark(number)} {escape(text)}</p>'
        for number, text in enumerate(board.footnotes, 1)
    )
    return (
        f'<section id="tasks"><h2>{_TITLE}</h2>\n<p class="dim">{escape(board.says)}</p>'
        '<div class="scroll"><table class="numbers results"><thead>'
        f"<tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{notes}</section>"
    )


def _html_row(row: Row, *, is_own: bool) -> str:
    name = escape(row.name)
    cells = "".join(f"<td>{_html_cell(cell, is_own=is_own)}</td>" for cell in row.cells)
    return f'<tr><th scope="row">{f"<b>{name}</b>" if is_own else name}</th>{cells}</tr>'


def _html_cell(cell: Cell | None, *, is_own: bool) -> str:
    if cell is None:
        return f'<span class="dim">{_UNKNOWN}</span>'
    text = f"<b>{escape(cell.text)}</b>" if is_own else escape(cell.text)
    return f'{text} <span class="dim">{_marks(cell)}</span>' if cell.notes else text


def scoreboard_markdown(board: Scoreboard) -> str:
    """Return the table as Markdown, its columns aligned for who reads the text itself."""
    rows = [["", *(f"{title}<br>{metrics}" for title, metrics in board.heads)]]
    for group in board.groups:
        rows.append([f"**{group.title}**", *[""] * len(board.heads)])
        for row in group.rows:
            bold = "**" if group.is_own else ""
            cells = [_UNKNOWN if c is None else _markdown_cell(c, bold) for c in row.cells]
            rows.append([f"{bold}{shown(row.name)}{bold}", *cells])
    lines = markdown_table(rows)
    notes = [f"{_mark(number)} {shown(text)}" for number, text in enumerate(board.footnotes, 1)]
    # Two blanks at its end break a line.
    return f"{shown(board.says)}\n\n" + "\n".join([*lines, "", "  \n".join(notes)]).rstrip() + "\n"


def _markdown_cell(cell: Cell, bold: str) -> str:
    text = f"{bold}{cell.text}{bold}"
    return f"{text} {_marks(cell)}" if cell.notes else text


def shown(name: str) -> str:
    """Return a text as Markdown shows it, whatever HTML or emphasis it holds."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("_", "\\_")):
        name = name.replace(sign, instead)
    return " ".join(name.split())


def _marks(cell: Cell) -> str:
    return " ".join(map(_mark, cell.notes))


def _mark(number: int) -> str:
    return str(number).translate(_SUPERSCRIPT)
