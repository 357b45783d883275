"""Finding and opening the files of raw text."""

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lert_ds.corpus import sources
from lert_ds.corpus.lines import Split
from lert_ds.corpus.sources import find_files, open_bytes, read_table, suffixes_of
from lert_ds.errors import CorpusError

FORMATS = ("txt", "jsonl", "parquet")


def touch(folder: Path, *names: str, content: str = "x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_files_folders_globs_and_samples_each_once_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.txt.gz", "sub/c.jsonl.zst", "notes.md", ".hidden.txt")
    touch(tmp_path, "empty.txt", content="")
    given = [
        tmp_path / "b.txt",
        tmp_path / "sub" / ".." / "b.txt",
        tmp_path,
        tmp_path / "*.gz",
        Path("samples:prose.txt"),
    ]
    files, empty = find_files(given, FORMATS)
    names = [path.name for path in files]
    assert names == ["b.txt", "a.txt.gz", "c.jsonl.zst", "prose.txt"]
    assert empty == 1
    recursive, _ = find_files([tmp_path / "**" / "*.zst"], FORMATS)
    assert [path.name for path in recursive] == ["c.jsonl.zst"]


def test_the_ending_tells_format_and_compression() -> None:
    found = [suffixes_of(Path(name)) for name in ("a.txt", "a.b.JSONL.GZ", "a.gz", "a", "x.zst")]
    assert found == [("txt", ""), ("jsonl", "gz"), ("a", "gz"), ("a", ""), ("x", "zst")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.txt", "missing.txt: there is no such file or folder"),
        ("empty.txt", "empty.txt: it is empty"),
        ("hollow", r"hollow: the folder holds no file that ends in .txt, .jsonl"),
        ("all_empty", "all_empty: it holds only empty files"),
        ("*.nothing", r"\*.nothing: no file matches"),
        ("notes.md", "notes.md: files are told by their ending"),
        ("samples:none.txt", "samples:none.txt: there is no such sample; there are annotated"),
    ],
)
def test_what_cannot_be_input(tmp_path: Path, given: str, message: str) -> None:
    touch(tmp_path, "notes.md")
    touch(tmp_path, "empty.txt", "all_empty/a.txt", content="")
    (tmp_path / "hollow").mkdir()
    path = Path(given) if given.startswith("samples:") else tmp_path / given
    with pytest.raises(CorpusError, match=message):
        find_files([path], FORMATS)


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
def test_every_compression_reads_the_same(tmp_path: Path, compression: str) -> None:
    content = "一\n二\n".encode() * 50_000
    pack = {"": bytes, "gz": gzip.compress, "zst": zstandard.compress}[compression]
    path = tmp_path / "a"
    path.write_bytes(pack(content) + (pack(content) if compression else b""))
    with open_bytes(Split(str(path), "txt", compression, 0, -1, 0)) as file:
        assert file.read() == content * (2 if compression else 1)


def test_a_truncated_zstd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(bytes(range(256)) * 1000)[:-20])
    with (
        pytest.raises(CorpusError, match=r"a.txt.zst: broken zstd"),
        open_bytes(Split(str(path), "txt", "zst", 0, -1, 0)) as file,
    ):
        file.read()


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["一", "二", "三"], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    rows = list(read_table(Split(str(path), "parquet", "", 1, 2, 0), ["text"]))
    assert rows == [(3, {"text": "三"})]
    packed = tmp_path / "b.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    rows = list(read_table(Split(str(packed), "parquet", "gz", 0, -1, 0), ["text"]))
    assert [record["text"] for _, record in rows] == ["一", "二", "三"]
    with pytest.raises(CorpusError, match=r"a.parquet: no column 'body' \(there is: text, n\)"):
        list(read_table(Split(str(path), "parquet", "", 0, -1, 0), ["body"]))
    path.write_bytes(b"PAR1 but no table")
    with pytest.raises(CorpusError, match=r"a.parquet: not a readable Parquet file"):
        list(read_table(Split(str(path), "parquet", "", 0, -1, 0), ["text"]))


def _read_all(split: Split, blocks: list[int]) -> None:
    with open_bytes(split) as file:
        while block := file.read(1 << 16):
            blocks.append(len(block))


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_file_that_unpacks_without_end_is_refused(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_FREE_BYTES", 1 << 20)
    bomb = b"\n" * (1 << 23)
    path = tmp_path / f"a.txt.{compression}"
    path.write_bytes(gzip.compress(bomb) if compression == "gz" else zstandard.compress(bomb))
    split = Split(str(path), "txt", compression, 0, -1, 0)
    blocks: list[int] = []
    with pytest.raises(CorpusError, match=r"a\.txt\.\w+: it unpacks to more than 200 times its"):
        _read_all(split, blocks)
    assert sum(blocks) <= 200 * path.stat().st_size + (1 << 20)
    with open_bytes(split, bounded=False) as file:
        assert len(file.read()) == len(bomb)
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(CorpusError, match=r"t\.parquet\.gz: it unpacks to more"):
        list(read_table(Split(str(tmp_path / "t.parquet.gz"), "parquet", "gz", 0, -1, 0), None))
