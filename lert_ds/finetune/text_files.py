"""Lines of a task's file, plain or .gz; and a table of named fields in any of its three formats.

label<TAB>text_a          .tsv, .txt    a header or none
sentence1,sentence2,label .csv          quoted as RFC 4180 has it
{"sentence": …, …}        .json         an object a line
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lert_ds.errors import UserError

Row = tuple[int, Mapping[str, str | None]]
"""Number of the line, from 1, and its fields by name."""


def read(path: Path) -> str:
    """Return the text of a file, UTF-8, plain or .gz.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, with iconv say"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again") from error


def json_of(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(read(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); copy it again") from error


def rows(path: Path, fields: Mapping[str, Sequence[str]], order: Sequence[str]) -> Iterator[Row]:
    """Yield the lines of a table, with the fields by our names; other columns are passed over.

    Args:
        path: Ends in .json, .jsonl, .csv, .tsv or .txt, and .gz after it.
        fields: Our name to the names that it goes by. A field that begins with ? may be missing.
        order: Our names in the order of the columns, where there is no header.

    Raises:
        UserError: a line that is none, or lacks a field; names the line.
    """
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    if suffix in (".json", ".jsonl"):
        yield from _json_rows(path, fields)
    elif suffix in (".csv", ".tsv", ".txt"):
        yield from _table_rows(path, fields, order, comma=suffix == ".csv")
    else:
        raise UserError(f"{path}: of no known format; give a .tsv, .txt, .csv or .json file")


def _json_rows(path: Path, fields: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    for number, line in enumerate(read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: line {number} is not JSON ({error}); copy it again"
            ) from error
        if not isinstance(given, dict):
            raise UserError(f"{path}: line {number} is no JSON object; give one a line")
        names = {
            ours: next((n for n in theirs if n in given), None) for ours, theirs in fields.items()
        }
        _refuse_missing(path, number, names, fields, list(given))
        yield (
            number,
            {
                ours: None if name is None or given[name] is None else str(given[name])
                for ours, name in names.items()
            },
        )


def _table_rows(
    path: Path, fields: Mapping[str, Sequence[str]], order: Sequence[str], *, comma: bool
) -> Iterator[Row]:
    text = read(path)
    lines: Iterator[tuple[int, list[str]]]
    if comma:
        lines = _quoted_rows(path, text)
    else:  # no quotes in a table of tabs: a text may begin with one
        lines = (
            (number, line.rstrip("\r").split("\t"))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        )
    places: dict[str, int | None] | None = None
    width = 0
    for number, row in lines:
        if places is None:
            places, is_header = _places(path, number, row, fields, order)
            width = len(row)
            if is_header:
                continue
        if len(row) != width:
            raise UserError(
                f"{path}: line {number} has {len(row)} columns where the first line has {width}; "
                "correct it"
            )
        yield number, {ours: None if at is None else row[at] for ours, at in places.items()}


def _quoted_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text))
    try:
        yield from ((reader.line_num, row) for row in reader if any(row))
    except csv.Error as error:  # a quote that is never closed takes in the rest of the file
        raise UserError(
            f"{path}: line {reader.line_num} is no CSV ({error}); correct it"
        ) from error


def _places(
    path: Path,
    number: int,
    row: Sequence[str],
    fields: Mapping[str, Sequence[str]],
    order: Sequence[str],
) -> tuple[dict[str, int | None], bool]:
    """Return the column of each field, and whether the line that says so is a header."""
    names = {ours: next((n for n in theirs if n in row), None) for ours, theirs in fields.items()}
    if any(names.values()):
        _refuse_missing(path, number, names, fields, row)
        return {o: None if name is None else row.index(name) for o, name in names.items()}, True
    if len(row) != len(order):
        raise UserError(
            f"{path}: line {number} has {len(row)} columns where {len(order)} are needed: "
            f"{', '.join(order)}; correct it, or give a header"
        )
    return {ours: order.index(ours) if ours in order else None for ours in fields}, False


def _refuse_missing(
    path: Path,
    number: int,
    names: Mapping[str, str | None],
    fields: Mapping[str, Sequence[str]],
    there: Sequence[str],
) -> None:
    for ours, name in names.items():
        if name is None and not ours.startswith("?"):
            raise UserError(
                f"{path}: line {number} has no {' or '.join(fields[ours])} "
                f"(there are: {', '.join(map(str, there))}); is it the right file?"
            )
