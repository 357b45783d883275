"""Input files to an ordered list of splits, one a task, that depends on nothing but the input.

The number of a split is the number of its task and the beginning of its shards' names, and in
every stage the first split comes first: so the corpus is the same bytes for any number of workers,
and after any interruption. A file is cut at borders of documents, about every `split_megabytes`.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from lert_ds import __version__
from lert_ds.corpus.lines import Split
from lert_ds.corpus.read import ReadOptions
from lert_ds.corpus.settings import PrepareConfig
from lert_ds.corpus.sources import find_files, open_bytes, open_table, suffixes_of
from lert_ds.errors import ConfigError
from lert_ds.files import write_json

PLAN = "plan.json"
_FEWEST_BYTES = 250_000
"""A split of small inputs: 0.1 s of reading, a second of jieba, half a row of padding in 150."""
_AIM_AT_SPLITS = 64
_SIGNATURE_BYTES_A_BUCKET = 256_000_000
"""Text whose sentences one task compares: about 100 MB of hashes."""
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n\s*")
_NEW_DOCUMENT = re.compile(rb"\n(?=# newdoc)")


@dataclass(frozen=True)
class Plan:
    """What is to be done, in which parts."""

    config: dict[str, Any]
    """The resolved configuration, without where and how."""
    splits: list[Split]
    files: list[tuple[str, int, int]]
    """Path, bytes, and time of change in nanoseconds: a change between runs is told."""
    empty_files: int
    version: str = __version__

    @property
    def tasks(self) -> int:
        """Number of splits."""
        return len(self.splits)

    @property
    def bytes(self) -> int:
        """Bytes of all splits."""
        return sum(split.bytes for split in self.splits)

    @property
    def buckets(self) -> int:
        """Number of tasks that look for duplicates."""
        return max(1, math.ceil(self.bytes / _SIGNATURE_BYTES_A_BUCKET))


def make_plan(config: PrepareConfig) -> Plan:
    """Return the plan of a configuration.

    Raises:
        CorpusError: an input is missing, empty, or cannot be read.
    """
    files, empty = find_files(config.input, config.formats)
    sizes = [path.stat() for path in files]
    total = sum(facts.st_size for facts in sizes)
    most = int(config.split_megabytes * 1_000_000)
    split_bytes = max(1, min(most, max(_FEWEST_BYTES, total // _AIM_AT_SPLITS)))
    options = read_options(config)
    splits = [
        split
        for path in files
        for split in _split_file(path, config.annotator.kind, split_bytes, options)
    ]
    facts = [
        (str(path), size.st_size, size.st_mtime_ns) for path, size in zip(files, sizes, strict=True)
    ]
    return Plan(config.of_the_corpus(), splits, facts, empty)


def read_options(config: PrepareConfig) -> ReadOptions:
    """Return how the configuration wants text to be read."""
    return ReadOptions(
        text_key=config.text_key,
        drop_bad_text=config.on_bad_text == "drop",
        documents=config.documents,
        document_characters=config.document_characters,
    )


def save_plan(work: Path, plan: Plan) -> None:
    """Write the plan into the work folder."""
    write_json(work / PLAN, asdict(plan), exact=True)


def load_plan(work: Path) -> Plan:
    """Return the plan that a work folder holds."""
    tree = json.loads((work / PLAN).read_text("utf-8"))
    tree["splits"] = [Split(**split) for split in tree["splits"]]
    tree["files"] = [tuple(file) for file in tree["files"]]
    return Plan(**tree)


def refuse_another_plan(work: Path, plan: Plan) -> None:
    """Refuse to go on with the work of another configuration, input or version.

    Raises:
        ConfigError: names what differs and what to do.
    """
    advice = f"delete {work} or say overwrite=true to begin anew"
    try:
        before = load_plan(work)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{work / PLAN}: it cannot be read ({error}); {advice}") from error
    if before.version != plan.version:
        raise ConfigError(
            f"{work}: begun by lert-ds {before.version}, this is {plan.version}; {advice}"
        )
    for key, value in plan.config.items():
        if (then := before.config.get(key)) != value:
            raise ConfigError(
                f"{work}: begun with {key} = {json.dumps(then, ensure_ascii=False)}, now it is "
                f"{json.dumps(value, ensure_ascii=False)}; {advice}"
            )
    if before.files != plan.files:
        changed = set(map(tuple, before.files)) ^ set(plan.files)
        name = sorted(changed)[0][0] if changed else plan.files[0][0]
        raise ConfigError(f"{work}: since it was begun the input changed ({name}); {advice}")


def _split_file(path: Path, kind: str, split_bytes: int, options: ReadOptions) -> Iterator[Split]:
    ending, compression = suffixes_of(path)
    file_format = "annotated" if kind == "precomputed" else ending
    size = path.stat().st_size
    marked = file_format == "conllu" and _marks_documents(path, compression)
    if ending == "parquet" and not compression:
        yield from _split_table(path, file_format, split_bytes)
        return
    if compression:
        yield Split(str(path), file_format, compression, 0, -1, size, marked)
        return
    # A document within the limit is never cut: its border lies in the window.
    window = 4 * options.document_characters
    by_lines = file_format == "jsonl" or (file_format == "txt" and options.documents == "lines")
    find: _Finder = _BORDERS["lines" if by_lines else "newdoc" if marked else file_format]
    borders = [0]
    with path.open("rb") as file:
        for nominal in range(split_bytes, size, split_bytes):
            if nominal > borders[-1]:
                borders.append(_next_border(file, nominal, window, find))
    ends = [*(border for border in borders[1:] if border < size), size]
    for start, end in zip([0, *ends], ends, strict=False):
        yield Split(str(path), file_format, "", start, end, end - start, marked)


def _split_table(path: Path, file_format: str, split_bytes: int) -> Iterator[Split]:
    with open_table(str(path), "") as table:
        sizes = [
            table.metadata.row_group(group).total_byte_size
            for group in range(table.metadata.num_row_groups)
        ]
    start, bytes_so_far = 0, 0
    for group, size in enumerate(sizes):
        bytes_so_far += size
        if bytes_so_far >= split_bytes or group == len(sizes) - 1:
            yield Split(str(path), file_format, "", start, group + 1, bytes_so_far)
            start, bytes_so_far = group + 1, 0


def _marks_documents(path: Path, compression: str) -> bool:
    with open_bytes(Split(str(path), "conllu", compression, 0, -1, 0)) as file:
        head = file.read(1_000_000)
    return b"\n# newdoc" in b"\n" + head


_Finder = Callable[[bytes], int]
"""Takes bytes from the last of a line on; returns where in them a document begins, or -1."""


def _next_border(file: IO[bytes], nominal: int, window: int, find: _Finder) -> int:
    """Return the first border of documents from `nominal` on, else the first line border."""
    file.seek(nominal - 1)
    block = file.read(window + 1)
    found = find(block)
    if found < 0 and len(block) <= window:
        return nominal - 1 + len(block)  # the last document goes on to the end of the file
    if found < 0:
        found = block.find(b"\n") + 1 or -1
    if found >= 0:
        return nominal - 1 + found
    place = nominal - 1 + len(block)
    while block := file.read(1 << 20):  # in a very long line
        if (found := block.find(b"\n")) >= 0:
            return place + found + 1
        place += len(block)
    return place


def _by_pattern(pattern: re.Pattern[bytes]) -> _Finder:
    def find(block: bytes) -> int:
        match = pattern.search(block)
        # At the very end of the block the run of blanks may go on, which does no harm.
        return match.end() if match else -1

    return find


def _by_line(block: bytes) -> int:
    return block.find(b"\n") + 1 or -1


def _by_doc(block: bytes) -> int:
    """Return where the `doc` of annotated sentences changes."""
    place = _by_line(block)
    first: Any = None
    while 0 <= place < len(block):
        end = block.find(b"\n", place)
        if end < 0:
            return -1
        try:
            doc = orjson.loads(block[place:end]).get("doc", 0)
        except (orjson.JSONDecodeError, AttributeError):
            return -1  # the reader will say what is wrong there
        if first is None:
            first = doc
        elif doc != first:
            return place
        place = end + 1
    return -1


_BORDERS: dict[str, _Finder] = {
    "lines": _by_line,
    "txt": _by_pattern(_BLANK_LINE),
    "newdoc": _by_pattern(_NEW_DOCUMENT),
    "conllu": _by_pattern(_BLANK_LINE),
    "annotated": _by_doc,
}
