"""Lines of a split: bounded, decoded, and named when they are no text."""

import gzip
from collections import Counter
from pathlib import Path

import pytest

from lert_ds.corpus import lines
from lert_ds.corpus.lines import LineReader, Split, place_of
from lert_ds.errors import CorpusError


def reader(
    path: Path, start: int = 0, end: int = -1, drop: bool = False, compression: str = ""
) -> LineReader:
    return LineReader(Split(str(path), "txt", compression, start, end, 0), drop, Counter())


def texts(found: LineReader, limit: int = 1000, cut: bool = False) -> list[str]:
    return [line.text for line in found.lines(limit, cut)]


def test_bom_and_every_kind_of_line_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff一\r\n二\n三\r四\n\n五".encode())
    assert texts(reader(path)) == ["一", "二", "三", "四", "", "五"]


def test_a_split_is_its_bytes_and_knows_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthree\nfour\n")
    found = reader(path, 4, 14)
    assert [(line.text, line.number) for line in found.lines(99)] == [("two", 1), ("three", 2)]
    assert place_of(found.split, 2) == f"{path}:3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ok\n\xff\xfe\n", r":2: byte 0xff at 1 of the line is not UTF-8; .*on_bad_text"),
        ("好\n".encode() + "好".encode("gbk") + b"\n", r":2: byte 0xba at 1"),
        (b"ok\nfine\nno\x00t\n", r":3: a NUL byte, so it is binary or UTF-16"),
        ("字".encode("utf-16"), r":1: "),
    ],
)
def test_what_is_no_text_is_refused_by_line_or_dropped(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=f"a.txt{message}"):
        texts(reader(path))
    dropping = reader(path, drop=True)
    assert texts(dropping) == [
        line.decode()
        for line in content.split(b"\n")[:-1]
        if line in (b"ok", b"fine", "好".encode())
    ]
    assert sum(dropping.counts.values()) == 1


def test_the_line_of_a_bad_byte_is_that_of_the_file_not_of_the_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthr\xffee\n")
    with pytest.raises(CorpusError, match=r"a.txt:3: byte 0xff at 4"):
        texts(reader(path, 4, 15))


@pytest.mark.parametrize("limit", [7, 8, 9, 10, 11, 50])
def test_a_long_line_is_cut_between_characters_and_loses_none(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "a.txt"
    text = "一二。三a四𠮷五😀六！七八九十" * 3
    path.write_text(f"{text}\n短\n", "utf-8")
    found = reader(path)
    pieces = list(found.lines(limit, cut=True))
    assert "".join(line.text for line in pieces) == text + "短"
    assert [line.number for line in pieces][-1] == 2
    assert [line.cut for line in pieces][-2:] == [False, False]
    assert found.counts["long line cut"] == len(pieces) - 2
    with pytest.raises(CorpusError, match=r"a.txt:1: a line of more than"):
        texts(reader(path), limit)


def test_five_megabytes_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("好" * 1_700_000, "utf-8")
    assert [len(text) for text in texts(reader(path), 8_000_000, cut=True)] == [1_700_000]


def test_broken_gzip_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress("好\n".encode() * 10_000)
    for content in (whole[:-10], b"not gzip at all", whole[:20] + b"xxxx" + whole[24:]):
        path.write_bytes(content)
        with pytest.raises(CorpusError, match=r"a.txt.gz: broken gzip .*copy it again"):
            texts(reader(path, compression="gz"))


def test_cutting_prefers_the_last_mark() -> None:
    assert lines._cut_line("一二三。四".encode()) == ("一二三。".encode(), "四".encode())
