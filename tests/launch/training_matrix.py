"""Run under the `deepspeed` launcher: trainings one after the other in the same processes.

    deepspeed --num_gpus 2 tests/launch/training_matrix.py RUNS.json

RUNS.json is a list of [command, configuration]. One launch for all: starting two processes costs
ten times what a tiny training does.
"""

import json
import sys
from pathlib import Path

from distill.run import DistillRun, distill
from lert_ds import cli, config, training, training_run
from lert_ds.pretrain import PretrainRun, pretrain
from lert_ds.train.engine import leave_processes

COMMANDS = {"pretrain": (PretrainRun, pretrain), "distill": (DistillRun, distill)}


def main() -> None:
    runs = json.loads(Path(sys.argv[-1]).read_text("utf-8"))
    cli.set_up_logging()
    # Between the runs the processes stay together: DeepSpeed cannot join a second group.
    training.leave_processes = lambda: None
    for name, tree in runs:
        run_class, command = COMMANDS[name]
        run = config.parse(run_class, tree, "matrix")
        command(run, training_run.open_corpora(run))
    leave_processes()


if __name__ == "__main__":
    main()
