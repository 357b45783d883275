import json

import pytest

from lert_ds.doctor.row import Row
from lert_ds.doctor.table import as_json, exit_code, table

ROWS = [
    Row("versions", "OK", "torch 2.13", hosts=("a", "b")),
    Row("clock", "WARN", "2.0 s ahead", "set it", ("b",)),
    Row("port", "FAIL", "29500: in use", "end it", ("a",)),
    Row("disk", "FAIL", "full", "free some", ("b",)),
]


def test_the_last_line_says_what_to_do_first() -> None:
    last = table(ROWS, ["a", "b"]).splitlines()[-1]
    assert last.startswith("2 findings would stop a run; 1 warning. First, port (a)")
    assert last.endswith("29500: in use → end it")
    assert table(ROWS[:2], ["a", "b"]).endswith("1 warning. First: 2.0 s ahead → set it")
    assert table(ROWS[:1], ["a", "b"]).endswith("\nNothing found would stop a run.")


def test_a_column_of_hosts_where_they_are_several() -> None:
    lines = table(ROWS, ["a", "b"]).splitlines()
    assert lines[0].split() == ["ok", "versions", "all", "torch", "2.13"]
    assert lines[1].split()[:3] == ["WARN", "clock", "b"]
    assert table(ROWS[:1], ["a"]).splitlines()[0].split() == ["ok", "versions", "torch", "2.13"]


def test_many_hosts_are_counted() -> None:
    hosts = [f"n{number}" for number in range(9)]
    row = Row("port", "FAIL", "taken", "end it", tuple(hosts[:5]))
    assert "n0 and 4 others" in table([row], hosts)


def test_long_findings_are_wrapped_to_the_width() -> None:
    row = Row("corpus", "FAIL", "word " * 40, "do this")
    lines = table([row], ["a"], width=60).splitlines()
    assert max(map(len, lines[:-1])) <= 60
    assert sum("word" in line for line in lines) > 3


@pytest.mark.parametrize(("rows", "code"), [(ROWS, 1), (ROWS[:2], 0), ([], 0)])
def test_the_exit_code_is_1_where_something_fails(rows: list[Row], code: int) -> None:
    assert exit_code(rows) == code


def test_json_has_every_row_and_host() -> None:
    told = json.loads(as_json(ROWS))
    assert told[2] == {"check": "port", "status": "FAIL", "found": "29500: in use",
                       "remedy": "end it", "hosts": ["a"]}  # fmt: skip
    assert len(told) == len(ROWS)
