"""`lert-ds report FOLDER…`: runs and benchmarks → one HTML page, or a summary as JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

from lert_ds import files
from lert_ds.errors import UserError
from lert_ds.redaction import redact, redact_tree
from lert_ds.report.benchmark_section import Benchmark, is_benchmark, read_benchmark
from lert_ds.report.page import GENERATOR, page
from lert_ds.report.runs import read_runs
from lert_ds.report.summary import summarize

_EPILOG = """\
examples:
  lert-ds report runs/pretrain                        writes runs/pretrain/report.html
  lert-ds report runs/* --output compare.html         several runs side by side
  lert-ds report runs/a runs/benchmark                the curves of a run, and a benchmark's table
  lert-ds report runs/pretrain --json | jq '.[0].metrics'

The page holds everything it shows: mail it, or open it where there is no network. It can be
written while a training goes on; write it again to see more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        help="a folder that a training wrote, or lert-ds benchmark",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page to write (default: FOLDER/report.html; for several ./report.html)",
    )
    how.add_argument(
        "--json", action="store_true", help="print final and best values as JSON; write no page"
    )
    parser.add_argument("--title", help="of the page (default: the folders' names)")
    parser.epilog = _EPILOG


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print its path, or print the summary as JSON.

    Raises:
        UserError: a folder that cannot be read, or an output that cannot be written.
    """
    folders: list[Path] = arguments.folders
    # Each kind in its own order: a benchmark's columns are no runs, and share no curves with them.
    benchmarks = [read_benchmark(folder) for folder in folders if is_benchmark(folder)]
    runs = read_runs([folder for folder in folders if not is_benchmark(folder)])
    if arguments.json:
        told = [*map(summarize, runs), *map(_told, benchmarks)]
        print(json.dumps(redact_tree(told), indent=2))  # noqa: T201
        return
    output = arguments.output or _default_output(folders)
    names = [run.name for run in runs] + [benchmark.name for benchmark in benchmarks]
    title = arguments.title or _default_title(names)
    _write(output, page(runs, title, benchmarks))
    print(output)  # noqa: T201


def _default_output(folders: list[Path]) -> Path:
    return folders[0] / "report.html" if len(folders) == 1 else Path("report.html")


def _told(benchmark: Benchmark) -> dict[str, Any]:
    return {"name": benchmark.name, "folder": str(benchmark.folder), **benchmark.record}


def _default_title(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


def _write(path: Path, html: str) -> None:
    # Lone surrogates, from a JSON escape or a file name, have no UTF-8: they show as "?".
    content = redact(html).encode("utf-8", "replace")
    try:
        if path.exists() and not _is_report(path):
            raise UserError(
                f"{path}: it exists and is no page of this command; name another file with --output"
            )
        files.write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); name another file with --output"
        ) from error


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(4096)
