"""The files of raw text: find them, open them whatever their compression, and read tables."""

import contextlib
import glob
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, cast

import pyarrow
import pyarrow.parquet

from lert_ds.errors import CorpusError

SAMPLES = "samples:"
"""Begins the name of a text that is shipped with the package."""
_SAMPLES_FOLDER = Path(__file__).parents[1] / "samples"
COMPRESSIONS = ("gz", "zst")
_BUFFER_BYTES = 1 << 20
_BATCH_ROWS = 64
_MOST_FOLDS, _FREE_BYTES = 200, 1 << 26
"""A compressed input may unpack to so many times its size, and 64 MiB whatever its size. Text is
packed 3 to 10 times smaller; zstd's limit is beyond 100,000."""


class Place(Protocol):
    """What is to be opened: see `lert_ds.corpus.read.Split`."""

    @property
    def path(self) -> str:
        """File."""

    @property
    def compression(self) -> str:
        """gz, zst, or nothing."""

    @property
    def start(self) -> int:
        """First byte or row group."""

    @property
    def end(self) -> int:
        """Byte or row group after the last; -1: to the end."""


def suffixes_of(path: Path) -> tuple[str, str]:
    """Return what a file's name says: (format, compression), each without its dot."""
    *_, before, last = ("", "", *path.name.lower().split("."))
    return (before, last) if last in COMPRESSIONS else (last, "")


def find_files(inputs: Sequence[Path], formats: Sequence[str]) -> tuple[list[Path], int]:
    """Return the files that `inputs` name, each once, and how many empty ones are left out.

    Args:
        inputs: files, folders (searched through and through), globs, `samples:NAME`.
        formats: endings to take from folders, without dot and compression.

    Raises:
        CorpusError: an input is missing, empty, or of another format.
    """
    found: dict[Path, Path] = {}
    empty = 0
    for given in inputs:
        files = _files_of(given, formats)
        full = [path for path in files if _size(path)]
        if not full:
            what = "is empty" if files == [given] else "holds only empty files"
            raise CorpusError(f"input = {given}: it {what}; give a file with text")
        empty += len(files) - len(full)
        for path in full:
            found.setdefault(path.resolve(), path)
    return list(found.values()), empty


def _files_of(given: Path, formats: Sequence[str]) -> list[Path]:
    endings = ", ".join(f".{name}" for name in formats)
    if str(given).startswith(SAMPLES):
        given = _sample(str(given).removeprefix(SAMPLES))
    if given.is_file():
        if suffixes_of(given)[0] not in formats:
            raise CorpusError(
                f"input = {given}: files are told by their ending, which is one of {endings} "
                "(plain, .gz or .zst); rename it"
            )
        return [given]
    if given.is_dir():
        candidates = sorted(path for path in given.rglob("*") if path.is_file())
        what = "the folder holds no file"
    elif glob.has_magic(str(given)):
        candidates = sorted(Path(name) for name in glob.glob(str(given), recursive=True))  # noqa: PTH207 - may be absolute
        candidates = [path for path in candidates if path.is_file()]
        what = "no file matches"
    else:
        raise CorpusError(f"input = {given}: there is no such file or folder")
    files = [
        path
        for path in candidates
        if suffixes_of(path)[0] in formats and not path.name.startswith(".")
    ]
    if not files:
        raise CorpusError(f"input = {given}: {what} that ends in {endings} (plain, .gz or .zst)")
    return files


def _sample(name: str) -> Path:
    path = _SAMPLES_FOLDER / name
    if not path.is_file():
        names = ", ".join(sorted(p.name for p in _SAMPLES_FOLDER.iterdir() if p.is_file()))
        raise CorpusError(f"input = {SAMPLES}{name}: there is no such sample; there are {names}")
    return path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CorpusError(f"input = {path}: it cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def open_bytes(place: Place, *, bounded: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed, at its start.

    Args:
        place: What is to be opened.
        bounded: Refuse a file that unpacks to much more than text does: one of a few kilobytes
            could keep a disk and a processor busy for days.

    Raises:
        CorpusError: it cannot be read, or its compression is broken; also raised while it is read.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes]
            if place.compression == "gz":
                unpacked = stack.enter_context(gzip.open(place.path, "rb"))
                file = _buffered(cast(io.RawIOBase, unpacked), place, bounded)
            elif place.compression == "zst":
                # Arrow's reader, for it tells a truncated stream; zstandard's ends without a word.
                source = stack.enter_context(pyarrow.OSFile(place.path))
                raw = stack.enter_context(pyarrow.CompressedInputStream(source, "zstd"))
                file = _buffered(raw, place, bounded)
            else:
                file = stack.enter_context(open(place.path, "rb", buffering=_BUFFER_BYTES))  # noqa: PTH123
                file.seek(place.start)
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(
            f"{place.path}: broken gzip ({error}); it was cut short or damaged, copy it again"
        ) from error
    except OSError as error:
        kind = "broken zstd" if place.compression == "zst" else "it cannot be read"
        reason = error.strerror or error
        raise CorpusError(f"{place.path}: {kind} ({reason}); copy it again") from error


def _buffered(raw: Any, place: Place, bounded: bool) -> IO[bytes]:
    most = _MOST_FOLDS * Path(place.path).stat().st_size + _FREE_BYTES
    return io.BufferedReader(_Bounded(raw, most, place.path) if bounded else raw, _BUFFER_BYTES)


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than a number of bytes."""

    def __init__(self, raw: Any, most: int, path: str) -> None:
        super().__init__()
        self._raw, self._left, self._path = raw, most, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._raw.read(len(buffer))
        buffer[: len(block)] = block
        self._left -= len(block)
        if self._left < 0:
            raise CorpusError(
                f"{self._path}: it unpacks to more than {_MOST_FOLDS} times its size, as no text "
                "does; where you trust it, unpack it and give the plain file"
            )
        return len(block)


def count_line_ends(path: str, end: int) -> int:
    """Return how many line ends a file has before byte `end`."""
    count = 0
    with open(path, "rb") as file:  # noqa: PTH123
        while end > 0 and (block := file.read(min(end, _BUFFER_BYTES))):
            count += block.count(b"\n")
            end -= len(block)
    return count


@contextlib.contextmanager
def open_table(path: str, compression: str) -> Iterator[Any]:
    """Open a Parquet file; a compressed one is first written out to a temporary file."""
    with contextlib.ExitStack() as stack:
        if compression:
            temporary = stack.enter_context(tempfile.TemporaryFile())
            place = _Whole(path, compression)
            with open_bytes(place) as packed:
                shutil.copyfileobj(packed, temporary, _BUFFER_BYTES)
            temporary.seek(0)
            source: Any = temporary
        else:
            source = path
        try:
            yield stack.enter_context(pyarrow.parquet.ParquetFile(source))
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise CorpusError(f"{path}: not a readable Parquet file ({reason})") from error


def read_table(place: Place, columns: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row, record) of a split of a Parquet file, rows counted from 1 in the whole file.

    Raises:
        CorpusError: it is no Parquet file, or lacks a column.
    """
    with open_table(place.path, place.compression) as table:
        there = table.schema_arrow.names
        if missing := [name for name in columns or () if name not in there]:
            raise CorpusError(
                f"{place.path}: no column {missing[0]!r} (there is: {', '.join(there)}); "
                "set text_key to the column of the text"
            )
        groups = table.metadata.num_row_groups
        end = groups if place.end < 0 else place.end
        row = sum(table.metadata.row_group(group).num_rows for group in range(place.start))
        for batch in table.iter_batches(
            _BATCH_ROWS, row_groups=range(place.start, end), columns=columns
        ):
            for record in batch.to_pylist():
                row += 1
                yield row, record


class _Whole:
    """A whole file as a place."""

    def __init__(self, path: str, compression: str) -> None:
        self.path, self.compression = path, compression
        self.start, self.end = 0, -1
