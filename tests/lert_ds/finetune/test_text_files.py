import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.errors import UserError
from lert_ds.finetune import text_files

FIELDS = {"text": ("text_a", "sentence"), "label": ("label",), "?language": ("language",)}
ORDER = ("label", "text")
line_text = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1).filter(
    lambda text: text.strip()
)


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[..., list[text_files.Row]]:
    """Read a file of a name and a content as a table."""

    def read(name: str, content: str | bytes, order: Sequence[str] = ORDER) -> list[text_files.Row]:
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return list(text_files.rows(path, FIELDS, order))

    return read


ROW = {"text": "很好", "label": "1", "?language": None}


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.tsv", "label\ttext_a\n1\t很好\n", 2),
        ("a.tsv", "other\tsentence\tlabel\nx\t很好\t1\n", 2),
        ("a.txt", "1\t很好\n", 1),
        ("a.tsv", "\ufefflabel\ttext_a\r\n\r\n1\t很好\r\n", 3),
        ("a.tsv.gz", "label\ttext_a\n1\t很好\n", 2),
        ("a.csv", "label,text_a\n1,很好\n", 2),
        ("a.csv", "1,很好\n\n", 1),
        ("a.json", '{"label": 1, "sentence": "很好", "id": 3}\n\n', 1),
        ("a.jsonl.gz", '{"label": "1", "text_a": "很好"}', 1),
    ],
)
def test_layouts_give_one_row(
    rows_of: Callable[..., list[text_files.Row]], name: str, content: str, line: int
) -> None:
    assert rows_of(name, content) == [(line, ROW)]


def test_quotes_are_of_csv_alone(rows_of: Callable[..., list[text_files.Row]]) -> None:
    ((line, row),) = rows_of("a.csv", 'label,text_a\n1,"他说，""好"",\n走了"\n')
    assert (line, row["text"]) == (3, '他说，"好",\n走了')
    ((_, row),) = rows_of("a.tsv", '1\t"他说\n')
    assert row["text"] == '"他说'


def test_a_field_that_may_be_missing_is_read_where_it_is(
    rows_of: Callable[..., list[text_files.Row]],
) -> None:
    found = rows_of("a.tsv", "language\tlabel\ttext_a\nzh\t1\t很好\n")
    assert found == [(2, {**ROW, "?language": "zh"})]
    found = rows_of("a.json", '{"language": null, "label": 1, "sentence": "很好"}')
    assert found == [(1, ROW)]


@settings(deadline=None)
@given(st.lists(st.tuples(line_text, line_text), min_size=1))
def test_every_format_carries_every_text(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    header = ("label", "sentence")
    table = "".join("\t".join(row) + "\n" for row in [header, *pairs])
    quoted = io.StringIO()
    csv.writer(quoted, quoting=csv.QUOTE_ALL).writerows([header, *pairs])
    objects = "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in pairs)
    for name, content in (("a.tsv", table), ("a.csv", quoted.getvalue()), ("a.json", objects)):
        (folder / name).write_bytes(content.encode())
        rows = text_files.rows(folder / name, FIELDS, ORDER)
        assert [(row["label"], row["text"]) for _, row in rows] == pairs, name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "label\tfoo\n1\tx\n", "line 1 has no text_a or sentence .there are: label, foo."),
        ("a.tsv", "1\tx\n1\ty\tz\n", "line 2 has 3 columns where the first line has 2"),
        ("a.csv", "1,x,y\n", "line 1 has 3 columns where 2 are needed: label, text"),
        ("a.tsv", "1\n", "line 1 has 1 columns where 2 are needed"),
        ("a.json", '{"label": 1}\n', "line 1 has no text_a or sentence"),
        ("a.json", '{"label": 1, "sentence": "x"}\n{"lab\n', "line 2 is not JSON"),
        ("a.json", '["x"]\n', "line 1 is no JSON object; give one a line"),
        ("a.xlsx", "", "of no known format; give a .tsv, .txt, .csv or .json file"),
        ("a.tsv", "1\t很好\n".encode("gb18030"), "not UTF-8 at byte 2; convert it"),
        ("a.csv", f'1,x\n1,"{"很好" * 70_000}\n', "line .* is no CSV"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    rows_of: Callable[..., list[text_files.Row]], name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError, match=f"{name}: {message}"):
        rows_of(name, content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tsv: there is no such file"):
        text_files.read(tmp_path / "a.tsv")
    with pytest.raises(UserError, match="cannot be read"):
        text_files.read(tmp_path)


@pytest.mark.parametrize("place", ["not gzip", "cut", "head", "middle", "end"])
def test_a_damaged_gz_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.tsv.gz"
    content = bytearray(gzip.compress("1\t很好\n".encode() * 50))
    if place == "not gzip":
        content[:] = b"1\tx\n"
    elif place == "cut":
        del content[-6:]
    else:  # a byte of the header, of the packed text, of the checksum
        at = {"head": 2, "middle": 10, "end": -8}[place]
        content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tsv\.gz: cannot be read .*; copy it again"):
        text_files.read(path)


def test_json_of(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"data": ["很好"]}', "utf-8")
    assert text_files.json_of(path) == {"data": ["很好"]}
    path.write_text('{"data": [', "utf-8")
    with pytest.raises(UserError, match=r"a\.json: not JSON .*; copy it again"):
        text_files.json_of(path)
