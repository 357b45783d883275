"""Pieces of the page."""

from lert_ds.report.html_pieces import html_section, html_table, run_heads, swatch


def test_a_section_without_content_is_none() -> None:
    assert html_section("Runs", "", "runs") == ""
    assert html_section("Runs", "x", "runs") == '<section id="runs"><h2>Runs</h2>\nx</section>'


def test_a_table_has_heads_rows_and_a_kind() -> None:
    text = html_table(["<td></td>"], [("a", ["1", "2"])], "numbers")
    assert '<table class="numbers"><thead><tr><td></td></tr></thead>' in text
    assert '<tr><th scope="row">a</th><td>1</td><td>2</td></tr>' in text


def test_names_of_runs_are_escaped_and_colours_begin_again() -> None:
    assert swatch(9) == swatch(1) != swatch(2)
    assert run_heads(["<b>"], 3) == f'<th scope="col" colspan="3">{swatch(0)}&lt;b&gt;</th>'
