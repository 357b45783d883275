"""The folders that a report is asked for, each as what it is.

    runs/pretrain                 a run                    → curves
    runs/finetune-ocnli           a fine-tuning            → a row of the table; its seeds' curves
    runs                          a folder of fine-tunings → their rows; curves would be too many
    runs/benchmark                a benchmark              → its own table

A folder that is nothing of these is read as a run, whose reader says what is missing in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lert_ds.report.benchmark_section import Benchmark, is_benchmark, read_benchmark
from lert_ds.report.finetune_results import (
    Finetune,
    finetunes_below,
    is_finetune,
    read_finetune,
    seeds_of,
)
from lert_ds.report.runs import Run, read_runs


@dataclass(frozen=True)
class Found:
    """What a report is of, each kind in the order that it was named in."""

    runs: list[Run]
    benchmarks: list[Benchmark]
    finetunes: list[Finetune]

    @property
    def names(self) -> list[str]:
        """The names of all, for a title."""
        done = {one.folder.resolve() for one in self.finetunes}
        alone = [run.name for run in self.runs if run.folder.resolve().parent not in done]
        return [*(f.name for f in self.finetunes), *alone, *(b.name for b in self.benchmarks)]


def read_folders(folders: Sequence[Path]) -> Found:
    """Return what is in `folders`.

    Raises:
        UserError: a folder that is none of the kinds, is named twice, or holds something broken.
    """
    benchmarks, finetunes, of_runs = [], [], []
    seen: set[Path] = set()
    for folder in folders:
        below = finetunes_below(folder)
        if is_benchmark(folder):
            benchmarks.append(read_benchmark(folder))
            continue
        for one in [folder] if is_finetune(folder) else below:
            if one.resolve() not in seen:
                finetunes.append(read_finetune(one))
            seen.add(one.resolve())
        if not below:
            # A fine-tuning that goes on has seeds and no summary yet.
            seeds = seeds_of(folder)
            of_runs += seeds or ([] if is_finetune(folder) else [folder])
    return Found(read_runs(of_runs), benchmarks, finetunes)
