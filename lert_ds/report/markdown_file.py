"""Results as a Markdown file, to put into a README: the tables of fine-tunings and of benchmarks.

    <!-- lert-ds report -->
    In percent, the best and in brackets the mean of 5 seeds …

    | | OCNLI dev<br>accuracy |

The curves of runs stay on the page.
"""

from collections.abc import Iterator, Sequence

from lert_ds.errors import UserError
from lert_ds.report.benchmark_section import Benchmark
from lert_ds.report.finetune_results import Finetune
from lert_ds.report.scoreboard import scoreboard
from lert_ds.report.scoreboard_text import scoreboard_markdown, shown

GENERATOR = "<!-- lert-ds report -->"
"""Tells a file of ours from any other: what may be written over."""
TABLE = "table.md"
"""In the folder of a benchmark: its own table."""


def markdown(finetunes: Sequence[Finetune], benchmarks: Sequence[Benchmark]) -> str:
    """Return the tables, those of fine-tunings first.

    Raises:
        UserError: a benchmark's table cannot be read.
    """
    return f"{GENERATOR}\n" + "\n".join(_parts(finetunes, benchmarks))


def _parts(finetunes: Sequence[Finetune], benchmarks: Sequence[Benchmark]) -> Iterator[str]:
    if finetunes:
        yield scoreboard_markdown(scoreboard(finetunes))
    for benchmark in benchmarks:
        path = benchmark.folder / TABLE
        try:
            table = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: the benchmark's table cannot be read ({error}); run lert-ds benchmark "
                "again, or write an .html page"
            ) from error
        yield f"Benchmark {shown(benchmark.name)}\n\n{table}"
