"""`lert-ds report RUN…`: run folders → one HTML page with their curves, or a summary as JSON."""

import argparse
import json
from pathlib import Path

from lert_ds import files
from lert_ds.errors import UserError
from lert_ds.report_page import GENERATOR, page
from lert_ds.report_runs import Run, read_runs
from lert_ds.report_summary import summarize

_EPILOG = """\
examples:
  lert-ds report runs/pretrain                        writes runs/pretrain/report.html
  lert-ds report runs/* --output compare.html         several runs side by side
  lert-ds report runs/pretrain --json | jq '.[0].metrics'

The page holds everything it shows: mail it, or open it where there is no network. It can be
written while a training goes on; write it again to see more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="a folder that a training wrote"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page to write (default: RUN/report.html; for several runs ./report.html)",
    )
    how.add_argument(
        "--json", action="store_true", help="print final and best values as JSON; write no page"
    )
    parser.add_argument("--title", help="of the page (default: the runs' names)")
    parser.epilog = _EPILOG


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print its path, or print the summary as JSON.

    Raises:
        UserError: a run that cannot be read, or an output that cannot be written.
    """
    runs = read_runs(arguments.runs)
    if arguments.json:
        print(json.dumps([summarize(one) for one in runs], indent=2))  # noqa: T201
        return
    output = arguments.output or _default_output(arguments.runs)
    _write(output, page(runs, arguments.title or _default_title(runs)))
    print(output)  # noqa: T201


def _default_output(folders: list[Path]) -> Path:
    return folders[0] / "report.html" if len(folders) == 1 else Path("report.html")


def _default_title(runs: list[Run]) -> str:
    names = [one.name for one in runs]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} other runs"


def _write(path: Path, html: str) -> None:
    # Lone surrogates, from a JSON escape or a file name, have no UTF-8: they show as "?".
    content = html.encode("utf-8", "replace")
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
