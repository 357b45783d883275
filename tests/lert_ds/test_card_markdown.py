"""Values of anybody's JSON as Markdown."""

import math

from lert_ds.card_markdown import (
    as_tree,
    code,
    listed,
    metrics,
    number,
    plain,
    section,
    shown,
    strings,
    table,
)


def test_what_is_not_of_its_type_is_left_out() -> None:
    assert as_tree({"a": 1}) == {"a": 1}
    assert as_tree(["a"]) == as_tree(None) == as_tree("a") == {}
    assert strings("a") == ("a",)
    assert strings(["a", 1, None, "b"]) == ("a", "b")
    assert strings(None) == strings({"a": 1}) == ()
    assert (number(3), number(0.5)) == (3, 0.5)
    assert [number(value) for value in (True, "3", None, math.nan, math.inf, [])] == [None] * 6
    assert metrics({"a": 1, "b": "x", "c": math.nan, "d": True}) == {"a": 1.0}
    assert (shown(12345), shown(None), shown("7")) == ("12,345", "–", "–")


def test_names_have_no_effect() -> None:
    assert code("a`|<b>\n\n# c") == "`a'\\|<b> # c`"
    assert code(" ") == code("") == "–"
    assert len(code("x" * 1000)) == 202
    assert plain("a<script>[b](c)`|*\n# d") == "ascriptb(c) # d"


def test_tables_and_sections() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert section("Title", "\n") == ""
    assert section("Title", "text\n\n") == "## Title\n\ntext\n"
    assert listed([12, 12, 12, 4, 1024]) == "12 × 3, 4, 1,024"
    assert listed([]) == ""
