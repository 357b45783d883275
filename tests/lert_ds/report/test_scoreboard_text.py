"""The table of results as HTML and as Markdown: ours bold, foreign text inert."""

import re
from collections.abc import Callable
from pathlib import Path

from lert_ds.report.finetune_results import read_finetune
from lert_ds.report.scoreboard import Cell, Group, Row, Scoreboard, scoreboard
from lert_ds.report.scoreboard_text import scoreboard_markdown, scoreboard_section

EVIL = "</td><script>|*_x"
BOARD = Scoreboard(
    [("OCNLI dev", "accuracy"), ("TNEWS dev", "accuracy")],
    [
        Group(
            "Fine-tuned here", True, [Row("模型, 5 seeds", [Cell("70.1 (70.0)", (1, 12)), None])]
        ),
        Group("Published: base models", False, [Row("LERT-base", [Cell("78.2 (77.5)"), None])]),
    ],
    "In percent.",
    ["trained on little", "README"],
)


def test_markdown() -> None:
    assert scoreboard_markdown(BOARD) == (
        "In percent.\n\n"
        "|                            | OCNLI dev<br>accuracy | TNEWS dev<br>accuracy |\n"
        "| :------------------------- | --------------------: | --------------------: |\n"
        "| **Fine-tuned here**        |                       |                       |\n"
        "| **模型, 5 seeds**          |  **70.1 (70.0)** ¹ ¹² |                     – |\n"
        "| **Published: base models** |                       |                       |\n"
        "| LERT-base                  |           78.2 (77.5) |                     – |\n"
        "\n"
        "¹ trained on little  \n"
        "² README\n"
    )


def test_html_has_own_rows_bold_and_published_ones_plain() -> None:
    html = scoreboard_section(BOARD)
    assert '<th scope="row"><b>模型, 5 seeds</b></th>' in html
    assert '<td><b>70.1 (70.0)</b> <span class="dim">¹ ¹²</span></td>' in html
    assert '<th scope="row">LERT-base</th><td>78.2 (77.5)</td>' in html
    assert '<p class="dim">² README</p>' in html


def test_foreign_text_is_inert(tmp_path: Path, write_finetune: Callable[..., Path]) -> None:
    files = {"train": f"{EVIL}.json", "dev": f"{EVIL}.json"}
    board = scoreboard([read_finetune(write_finetune(tmp_path / "a", start=EVIL, files=files))])
    html = scoreboard_section(board)
    assert "<script" not in html
    text = scoreboard_markdown(board)
    assert "<script" not in text
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1


def test_without_footnotes_nothing_follows() -> None:
    board = Scoreboard(BOARD.heads, BOARD.groups, BOARD.says, [])
    assert scoreboard_markdown(board).endswith("– |\n")
