"""Run under the `deepspeed` launcher: pre-trainings one after the other in the same processes.

    deepspeed --num_gpus 2 tests/launch/pretrain_matrix.py RUNS.json

RUNS.json is a list of configurations of `lert-ds pretrain`. One launch for all: starting two
processes costs ten times what a tiny training does.
"""

import json
import sys
from pathlib import Path

from lert_ds import cli, config, pretrain, training, training_run
from lert_ds.train.engine import leave_processes


def main() -> None:
    runs = json.loads(Path(sys.argv[-1]).read_text("utf-8"))
    cli.set_up_logging()
    # Between the runs the processes stay together: DeepSpeed cannot join a second group.
    training.leave_processes = lambda: None
    for tree in runs:
        run = config.parse(pretrain.PretrainRun, tree, "matrix")
        pretrain.pretrain(run, training_run.open_corpora(run))
    leave_processes()


if __name__ == "__main__":
    main()
