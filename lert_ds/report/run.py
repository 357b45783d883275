"""`lert-ds report FOLDER…`: runs, fine-tunings, benchmarks → an HTML page, Markdown, JSON."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from lert_ds import files
from lert_ds.errors import UserError
from lert_ds.redaction import redact, redact_tree
from lert_ds.report import markdown_file
from lert_ds.report import page as html_page
from lert_ds.report.benchmark_section import Benchmark
from lert_ds.report.finetune_results import Finetune
from lert_ds.report.folders import Found, read_folders
from lert_ds.report.summary import summarize

logger = logging.getLogger(__name__)

_EPILOG = """\
examples:
  lert-ds report runs/pretrain                        writes runs/pretrain/report.html
  lert-ds report runs/* --output compare.html         several runs side by side
  lert-ds report runs/a runs/benchmark                the curves of a run, and a benchmark's table
  lert-ds report runs/finetune-ocnli                  scores beside published ones; curves
  lert-ds report runs --output results.md             all fine-tunings in runs, a table for a README
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
        help="a folder that a training, lert-ds finetune or lert-ds benchmark wrote; or one that "
        "holds fine-tunings",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page to write (default: FOLDER/report.html; for several ./report.html); one that "
        "ends in .md gets the tables of fine-tunings and benchmarks as Markdown",
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
    found = read_folders(arguments.folders)
    if arguments.json:
        results: list[Finetune | Benchmark] = [*found.finetunes, *found.benchmarks]
        told = [*map(summarize, found.runs), *map(_told, results)]
        print(json.dumps(redact_tree(told), indent=2))  # noqa: T201
        return
    output = arguments.output or _default_output(arguments.folders)
    if output.suffix == ".md":
        _write(output, _markdown(output, found), markdown_file.GENERATOR)
    else:
        title = arguments.title or _default_title(found.names)
        text = html_page.page(found.runs, title, found.benchmarks, found.finetunes)
        _write(output, text, html_page.GENERATOR)
    print(output)  # noqa: T201


def _markdown(output: Path, found: Found) -> str:
    if not found.finetunes and not found.benchmarks:
        raise UserError(
            f"{output}: Markdown takes the tables of fine-tunings and benchmarks, and there is "
            "none in these folders; name one, or a page that ends in .html for the curves of runs"
        )
    if found.runs:
        logger.info("%s: curves are for a page; name a file that ends in .html for them", output)
    return markdown_file.markdown(found.finetunes, found.benchmarks)


def _default_output(folders: list[Path]) -> Path:
    return folders[0] / "report.html" if len(folders) == 1 else Path("report.html")


def _told(result: Benchmark | Finetune) -> dict[str, Any]:
    return {"name": result.name, "folder": str(result.folder), **result.record}


def _default_title(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


def _write(path: Path, text: str, generator: str) -> None:
    # Lone surrogates, from a JSON escape or a file name, have no UTF-8: they show as "?".
    content = redact(text).encode("utf-8", "replace")
    try:
        if path.exists() and not _is_report(path, generator):
            raise UserError(
                f"{path}: it exists and is no page of this command; name another file with --output"
            )
        files.write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); name another file with --output"
        ) from error


def _is_report(path: Path, generator: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return generator.encode() in file.read(4096)
