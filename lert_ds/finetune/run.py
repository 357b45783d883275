"""`lert-ds finetune TASK MODEL`: a pre-trained model and a task's files to scores and a model.

    runs/finetune-ocnli/
      seed-1/ …      config.json, metrics.jsonl, scores.json, predictions-dev.json of each seed
      model/         of the seed that did best on the dev file
      summary.json   the best and the mean over the seeds, as LERT's paper tells them

Read with `tasks.py` (what there is), `task_data.py` (files to batches), `kinds.py` (the losses) and
`seed_run.py` (one training). The loop is that of every training here: `lert_ds/train/trainer.py`.
"""

import argparse
import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lert_ds import cli, config, distributed, hub_upload, model_dir, run_lock, training_run
from lert_ds.errors import ConfigError
from lert_ds.files import refuse_finished, write_json, write_whole_folder
from lert_ds.finetune import seed_run, summary
from lert_ds.finetune.finetune_config import FinetuneRun
from lert_ds.finetune.task_data import find_files, open_task
from lert_ds.finetune.tasks import TASKS, find_task
from lert_ds.run_folder import COLLECTIVE_SHARE, joined
from lert_ds.train.peers import Peers

PRESETS = Path(__file__).parents[1] / "configs"
ALL = "all"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "task", metavar="TASK", help=f"{', '.join(TASKS)}; all: those in task.data; or a .toml file"
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, or a name on the hub")
    parser.add_argument(
        "overrides",
        metavar="key.path=value",
        nargs="*",
        help="wins over the preset; TASK.key.path=value for one task of several",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration and the arithmetic, and stop",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="with --dry-run: reckon with N processes"
    )
    parser.set_defaults(config_class=FinetuneRun, preset_folder=PRESETS, command="finetune")
    parser.epilog = f"keys (key=default):\n{config.describe(FinetuneRun)}"


def run(arguments: argparse.Namespace) -> None:
    """Fine-tune as asked, or say what that would take."""
    runs = read_runs(arguments.task, arguments.model, arguments.overrides)
    if arguments.dry_run:
        for one in runs:
            _explain(one, arguments.processes or distributed.world_size())
        return
    for one in runs:
        if arguments.task != ALL and not _has_more(one):
            refuse_finished(one.output, run_lock.FINISHED, one.overwrite)
    addresses = [one.push_to_hub for one in runs if one.push_to_hub is not None]
    if len(set(addresses)) < len(addresses):
        raise ConfigError(
            f"push_to_hub = {addresses[0]}: one name for the models of several tasks; say "
            "TASK.push_to_hub=owner/name for each"
        )
    timeout_seconds = max(one.train.timeout_seconds for one in runs)
    finished = []
    with joined(timeout_seconds):
        disk = Peers(COLLECTIVE_SHARE * timeout_seconds)
        for one in runs:
            if disk.of_main(partial(_is_finished, one)):
                logger.info("%s: finished before; say overwrite=true to do it again", one.output)
            elif not finetune(one):
                break
            else:
                finished.append(one)
    for one in finished:  # the processes have parted: none waits for an upload
        if one.push_to_hub is not None and distributed.is_main():
            hub_upload.try_push(one.output / "model", one.push_to_hub)


def _is_finished(asked: FinetuneRun) -> bool:
    """Return whether there is nothing left to do."""
    is_there = (asked.output / run_lock.FINISHED).is_file()
    return is_there and not asked.overwrite and not _has_more(asked)


def _has_more(asked: FinetuneRun) -> bool:
    """Return whether more seeds are asked for than a finished fine-tuning has."""
    before = summary.read(asked.output).get("seeds", [])
    return not asked.overwrite and bool(before) and set(before) < set(asked.seeds)


def read_runs(name: str, model: str, overrides: Sequence[str]) -> list[FinetuneRun]:
    """Return the configuration of each task that is asked for.

    Of `all`, an `output` is the folder that gets one named after each task.

    Raises:
        ConfigError: no such task or key, or `all` and no task's files are there.
    """
    if name != ALL:
        one = _read(name, model, overrides)
        others = TASKS.keys() - {find_task(one.task.name).name}
        for override in overrides:
            if override.partition(".")[0] in others:
                raise ConfigError(f"{override}: the task is {one.task.name}; take this out")
        return [one]
    runs, absent = [], []
    is_shared = any(override.startswith("output=") for override in overrides)
    for task in TASKS:
        one = _read(task, model, overrides)
        if is_shared and not any(override.startswith(f"{task}.output=") for override in overrides):
            one = one.model_copy(update={"output": one.output / task})
        names = (task, *TASKS[task].aliases)
        is_there = any((one.task.data / name).is_dir() for name in names)
        if is_there and "train" in find_files(one.task, TASKS[task]):
            runs.append(one)
        else:
            absent.append(task)
    if not runs:
        raise ConfigError(
            f"task.data = {_read(absent[0], model, overrides).task.data}: it has no folder of a "
            f"task with a file to train on ({', '.join(absent)}); see docs/tasks.md"
        )
    if absent:
        logger.info("no files to train on for %s", ", ".join(absent))
    return runs


def _read(name: str, model: str, overrides: Sequence[str]) -> FinetuneRun:
    preset = name if name.endswith(".toml") else f"finetune-{find_task(name).name}"
    path = config.find(preset, [PRESETS], "finetune")
    of_all = [override for override in overrides if override.partition(".")[0] not in TASKS]
    own = f"{_task_of(path, of_all)}."
    of_this = [override.removeprefix(own) for override in overrides if override.startswith(own)]
    return config.load(FinetuneRun, path, [*of_all, *of_this, f"model={model}"])


def _task_of(path: Path, overrides: Sequence[str]) -> str:
    """Return the task of a file: what it says itself, whatever its name."""
    task = config.read_tree(path, overrides).get("task")
    name = task.get("name") if isinstance(task, dict) else None
    return find_task(name).name if isinstance(name, str) and name else ""


def finetune(asked: FinetuneRun) -> dict[str, Any] | None:
    """Fine-tune with every seed, write the run folder, and return the content of summary.json.

    Every process must call it. Seeds that are finished are not trained again, so more of them can
    be asked for later. Returns None where something asked to stop; the same call goes on then.

    Raises:
        UserError: something does not fit; nothing has been changed then.
    """
    source = model_dir.resolve(asked.model)
    data = open_task(asked.task, source, model_dir.read_config(source))
    plan = seed_run.plan(asked, data, distributed.world_size())
    processes = distributed.world_size()
    logger.info(training_run.explain(plan.run, plan.numbers, data.facts, processes))
    scores = []
    for seed in asked.seeds:
        found = seed_run.run_seed(plan, seed, data)
        if found is None:
            return None
        scores.append(found)
    found_of_all = summary.summarize(plan, data, scores)
    if distributed.is_main():
        _write(asked, found_of_all, scores)
        for line in summary.lines(found_of_all):
            logger.info(line)
    distributed.barrier()
    return found_of_all


def _write(asked: FinetuneRun, found: dict[str, Any], scores: Sequence[Mapping[str, Any]]) -> None:
    """Put the best seed's model in its place, and what all seeds reached beside it."""
    folder, place = asked.output, asked.output / "model"
    write_json(folder / "config.json", config.dump(asked))
    best = folder / f"seed-{found['best_seed']}" / "model"
    is_in_place = summary.read(folder).get("best_seed") == found["best_seed"] and place.is_dir()
    if best.is_dir():
        with write_whole_folder(place) as temporary:
            shutil.copytree(best, temporary, dirs_exist_ok=True)
    elif not is_in_place or asked.overwrite:
        # As after an end that was taken away: only the best one's stays then.
        raise ConfigError(
            f"{best}: the model of the best seed is not there any more; say overwrite=true to "
            "train all seeds again"
        )
    write_json(folder / summary.FILE, {**found, "model": str(place)})
    if not asked.keep_models:
        for one in scores:
            shutil.rmtree(folder / f"seed-{one['seed']}" / "model", ignore_errors=True)
    logger.info("model: %s, of seed %d", place, found["best_seed"])


def _explain(asked: FinetuneRun, processes: int) -> None:
    source = model_dir.resolve(asked.model)
    data = open_task(asked.task, source, model_dir.read_config(source))
    plan = seed_run.plan(asked, data, processes)
    cli.print_config(plan.run)
    print(training_run.explain(plan.run, plan.numbers, data.facts, processes))  # noqa: T201
    print(f"{'seeds':<17} {len(asked.seeds)}, each of them as above")  # noqa: T201
