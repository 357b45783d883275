"""Run under the `deepspeed` launcher: trainings one after the other in the same processes.

    deepspeed --num_gpus 2 tests/launch/training_matrix.py RUNS.json

RUNS.json is a list of [command, configuration] or [command, configuration, options]. One launch for
all: starting two processes costs ten times what a tiny training does. Options:

    stop_after    the last process is asked to stop after so many steps of this start
    stream        file to which the samples that are trained on are appended, a line a micro-batch
    pace          seconds to rest before each micro-batch, so that faults can be aimed

DeepSpeed on a CPU takes fp16 where the processor multiplies it itself; torch computes it on any.
"""

import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator

from distill.run import DistillRun, distill
from lert_ds import cli, config, distributed, run_folder, training_run
from lert_ds.corpora import Corpora
from lert_ds.errors import UserError
from lert_ds.pretrain import PretrainRun, pretrain
from lert_ds.train.engine import leave_processes
from lert_ds.train.interruption import Interruption
from prune.recover import RecoverRun, as_distillation

COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "pretrain": (PretrainRun, lambda run: pretrain(run, training_run.open_corpora(run))),
    "distill": (DistillRun, distill),
    "recover": (RecoverRun, lambda run: distill(as_distillation(run))),
}
batches_of, code_of = Corpora.batches, Interruption.code


def asked_after(steps: int | None) -> Any:
    """Return `Interruption.code` for a training that one process is asked to stop."""
    if steps is None:
        return code_of
    calls = itertools.count(1)
    last = distributed.rank() == distributed.world_size() - 1

    def code(_: Interruption, margin_seconds: float) -> int:
        return signal.SIGUSR1 if last and next(calls) >= steps else 0

    return code


def recorded(path: str | None, pace_seconds: float) -> Any:
    """Return `Corpora.batches` that writes down what the trainer takes."""

    def data(corpora: Any, train: Any, seed: int, micro_batch_size: int) -> Any:
        given = batches_of(corpora, train, seed, micro_batch_size)

        def batches(step: int, samples: int) -> Iterator[Any]:
            skip = samples % micro_batch_size
            for number, batch in given.training(step, samples):
                with Path(f"{path}-{distributed.rank()}").open("a") as file:
                    file.write(f"{number * micro_batch_size + skip} {micro_batch_size}\n")
                time.sleep(pace_seconds)
                yield number, batch

        return given if path is None else given._replace(training=batches)

    return data


def main() -> None:
    runs = json.loads(Path(sys.argv[-1]).read_text("utf-8"))
    cli.set_up_logging()
    get_accelerator().is_fp16_supported = lambda: True
    # Between the runs the processes stay together: DeepSpeed cannot join a second group.
    run_folder.leave_processes = lambda: None
    for name, tree, *rest in runs:
        options = rest[0] if rest else {}
        Interruption.code = asked_after(options.get("stop_after"))
        Corpora.batches = recorded(options.get("stream"), options.get("pace", 0.0))
        run_class, command = COMMANDS[name]
        try:
            run = config.parse(run_class, tree, "matrix")
            command(run)
        except UserError as error:  # as the command line does
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
            os._exit(2)
        except Exception:  # noqa: BLE001 - without the interpreter's orderly end, which may hang
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    leave_processes()


if __name__ == "__main__":
    main()
