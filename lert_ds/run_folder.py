"""The run folder while a run uses it: joined processes, verified data, and one run at a time."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lert_ds import distributed, hub_upload, run_lock
from lert_ds.config import dump
from lert_ds.errors import UserError
from lert_ds.files import refuse_finished, write_json
from lert_ds.train import best
from lert_ds.train.engine import join_processes, leave_processes
from lert_ds.train.peers import Peers
from lert_ds.train.tracking import WANDB_ID
from lert_ds.training_data import TrainingData
from lert_ds.training_run import TrainingRun

COLLECTIVE_SHARE = 1.5
"""Times the run's timeout that a collective waits: the watchdog, which knows more, comes first."""


@contextmanager
def joined(timeout_seconds: float) -> Iterator[None]:
    """Keep the processes joined over several runs: DeepSpeed cannot join a second group."""
    ours = join_processes(COLLECTIVE_SHARE * timeout_seconds)
    try:
        yield
    finally:
        if ours:
            leave_processes()


@contextmanager
def prepared(run: TrainingRun, data: TrainingData) -> Iterator[Peers]:
    """Join the processes, verify the data, and make the run folder; leave at the end, and upload.

    The folder is cleared where `overwrite` says so, after every process has checked what it can.
    No other run can use it meanwhile. A finished result is uploaded where the run says so.

    Raises:
        ConfigError: the output folder holds a finished result, is a file, or another run holds it.
        CorpusError: a shard is not what its manifest says.
    """
    refuse_finished(run.output, run_lock.FINISHED, run.overwrite)
    with joined(run.train.timeout_seconds):
        peers = Peers(COLLECTIVE_SHARE * run.train.timeout_seconds)
        leads = peers.leader(run.output) == distributed.rank()
        with ExitStack() as lock:
            mistake: UserError | None = None
            try:
                if leads:
                    lock.enter_context(run_lock.held(run.output))
                # The processes of a host share the hashing.
                data.verify(distributed.local_rank(), distributed.local_world_size())
            except UserError as error:
                mistake = error
            peers.agree(mistake)
            if leads:
                _make_folder(run)
            peers.gather(None)
            yield peers
    # Only now: the others would wait for an upload in a collective, and time out.
    is_finished = (run.output / run_lock.FINISHED).is_file()
    if run.push_to_hub is not None and is_finished and distributed.is_main():
        hub_upload.try_push(run.output / "model", run.push_to_hub)


def _make_folder(run: TrainingRun) -> None:
    """Clear what a new start replaces; hosts without a shared disk do so each."""
    if run.overwrite or run.resume == "never":
        for name in ("checkpoints", "model", "tensorboard"):
            shutil.rmtree(run.output / name, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json", "report.html", WANDB_ID, best.FILE):
            (run.output / name).unlink(missing_ok=True)
    if distributed.is_main():
        write_json(run.output / "config.json", dump(run))
