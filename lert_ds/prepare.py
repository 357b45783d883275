"""`lert-ds prepare`: raw text to an annotated corpus folder; `--show N` prints instances of one."""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lert_ds import config
from lert_ds.cli import add_config_arguments, read_config
from lert_ds.corpus.annotate import resolve_tag_sets
from lert_ds.corpus.finish import refuse_output
from lert_ds.corpus.outputs import (
    BEGIN,
    FINISH,
    damaged,
    forget_damaged,
    is_installed,
    record,
)
from lert_ds.corpus.plan import Plan, load_plan, make_plan, refuse_another_plan, save_plan
from lert_ds.corpus.settings import LEARN, PrepareConfig
from lert_ds.corpus.vocabulary import load_tokenizer, save_tokenizer
from lert_ds.corpus.work import Work
from lert_ds.data.shards import HELD_OUT, read_manifest
from lert_ds.errors import ConfigError
from lert_ds.files import remove_folder, sweep
from lert_ds.redaction import redact_tree
from lert_ds.show import show

log = logging.getLogger(__name__)

PRESETS = Path(__file__).parent / "configs"

_CHARACTERS_A_SECOND = {"jieba": 300_000, "conllu": 500_000, "precomputed": 500_000}
"""Annotating, aligning and packing on one core, about; ltp depends on the model and the device."""
_BYTES_A_CHARACTER = {"conllu": 60, "precomputed": 40}
_WORK_FILES = frozenset(
    {
        *("plan.json", "lock", "logs", "tokenizer", "tag_sets.json", "pieces", "tags", "signed"),
        *("signatures", "duplicates", "annotated", "divide.json", "corpus", "packed"),
        *("finished", "error.json", "done"),
    }
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    add_config_arguments(parser, PrepareConfig, PRESETS)
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="print N instances of a corpus folder, which CONFIG then names, and stop",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepare a corpus, or show one."""
    if arguments.show is not None:
        if arguments.overrides:
            raise ConfigError(f"{arguments.overrides[0]}: --show takes a corpus folder and no keys")
        show(Path(arguments.config), arguments.show)
        return
    prepare_config = read_config(PrepareConfig, arguments)
    if arguments.dry_run:
        print_plan(prepare_config, make_plan(prepare_config))
        return
    prepare(prepare_config)


def prepare(prepare_config: PrepareConfig) -> None:
    """Make the corpus folder of a configuration.

    Raises:
        UserError: of the configuration, the input or the output; what was there is untouched.
    """
    from lert_ds.corpus.build import make_filter, run_stages  # datatrove takes a second to import

    output = prepare_config.output
    work = Work(prepare_config.work)
    sweep(output.absolute().parent, output.name)
    sweep(work.root.parent, work.root.name)
    sweep(work.root, deep=True)
    if _was_ended_after_the_move(work, prepare_config):
        _tell_result(output)
        return
    refuse_output(output, prepare_config.overwrite)
    for arguments in prepare_config.filters:
        make_filter(arguments)
    plan = make_plan(prepare_config)
    _make_folder(work.root)
    # Each task has its core; libraries that would take all of them slow each other down.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if prepare_config.executor.tasks_at_once(plan.tasks) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(prepare_config.executor.cpus_per_task))
    with _locked(work.root):
        try:
            _begin(work, prepare_config, plan)
            _tell_plan(plan)
            if not run_stages(work, prepare_config.executor):
                log.info("submitted; the last job writes %s; logs are in %s", output, work.root)
                return
            remove_folder(work.root)
        finally:
            sweep(work.root, deep=True)  # of workers that were ended in the middle
    _tell_result(output)


def _was_ended_after_the_move(work: Work, prepare_config: PrepareConfig) -> bool:
    """Clear the work folder of a run that was killed when only that was left of it to do.

    Return whether it was the same run, so that nothing else is left to do now.
    """
    if not work.finished or not is_installed(work):
        return False
    with _locked(work.root):
        same = damaged(work, BEGIN) is None
        same = same and load_plan(work.root).config == prepare_config.of_the_corpus()
        remove_folder(work.root)
    return same


def _begin(work: Work, prepare_config: PrepareConfig, plan: Plan) -> None:
    """Make the work folder ready: as it was left, or anew."""
    begun = any((work.root / "logs").glob("*/completions/*"))
    if begun and (name := damaged(work, BEGIN)) is not None:
        log.warning("%s: it is not as it was written; all begins anew", work.root / name)
    elif begun and (work.corpus.exists() or not work.finished):
        try:
            refuse_another_plan(work.root, plan)
            log.info("going on with %s", work.root)
            _mend(work)
            return
        except ConfigError:
            if not prepare_config.overwrite:
                raise
    _empty(work.root)
    if prepare_config.tokenizer != LEARN:
        vocabulary = load_tokenizer(prepare_config.tokenizer)
        save_tokenizer(vocabulary, work.tokenizer, prepare_config.max_length)
    if prepare_config.annotator.tag_sets != "collect":
        work.write("tag_sets.json", resolve_tag_sets(prepare_config.annotator, ()))
    save_plan(work.root, plan)
    record(work, BEGIN)


def _mend(work: Work) -> None:
    """Let all be done again whose files are missing, cut short or changed."""
    stages = [path.name for path in (work.root / "logs").iterdir() if path.is_dir()]
    forgotten = forget_damaged(work, [name for name in stages if name != FINISH])
    if work.finished and (forgotten or damaged(work, FINISH) is not None):
        work.reopen()


def _make_folder(root: Path) -> None:
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    # What has a dot is being written, by a run that has the lock.
    foreign = sorted(n for n in names if n not in _WORK_FILES and not n.startswith("."))
    if foreign:
        raise ConfigError(
            f"{root}: it holds {foreign[0]}, which is not of an interrupted run; the folder is "
            "needed for the work: move it away or name another output"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output = {root.with_suffix('')}: its folder cannot be written ({error.strerror})"
        ) from error


def _empty(root: Path) -> None:
    for path in root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep a second run out of the work folder."""
    with (root / "lock").open("w") as file:
        try:
            # Not flock: processes that datatrove forks would keep it, should this one be killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{root}: another lert-ds prepare is at work there") from error
        yield


def _tell_plan(plan: Plan) -> None:
    log.info(
        "input: %d file(s), %.2f MB, in %d task(s)", len(plan.files), plan.bytes / 1e6, plan.tasks
    )


def _tell_result(output: Path) -> None:
    manifest = read_manifest(output)
    facts = manifest.statistics
    log.info(
        "%s: %s instances of %d, %s tokens, padding %.2f %%, [UNK] %.2f %%; see %s",
        output,
        f"{manifest.instances:,}",
        manifest.length,
        f"{facts['tokens']:,}",
        100 * facts["padding_share"],
        100 * facts["unknown_share"],
        output / "statistics.md",
    )
    if (output / HELD_OUT).is_dir():
        held_out = read_manifest(output / HELD_OUT)
        log.info("%s: %s instances", output / HELD_OUT, f"{held_out.instances:,}")


def print_plan(prepare_config: PrepareConfig, plan: Plan) -> None:
    """Print the resolved configuration, the splits and the time they may take."""
    tree = redact_tree(config.dump(prepare_config))
    lines = [json.dumps(tree, indent=2, ensure_ascii=False), ""]
    for task, split in enumerate(plan.splits):
        part = "" if split.end < 0 else f" [{split.start:,}, {split.end:,})"
        lines.append(f"task {task:05d}  {split.bytes / 1e6:10.3f} MB  {split.path}{part}")
    kind = prepare_config.annotator.kind
    characters = plan.bytes / _BYTES_A_CHARACTER.get(kind, 3)
    workers = prepare_config.executor.tasks_at_once(plan.tasks)
    lines += ["", f"{len(plan.files)} files, {plan.bytes / 1e6:.3f} MB, {plan.tasks} tasks"]
    lines.append(f"about {characters / 1e6:,.2f} million characters")
    if speed := _CHARACTERS_A_SECOND.get(kind):
        seconds = characters / speed / workers
        lines.append(f"about {seconds:,.0f} s with {workers} workers ({kind}: {speed:,} a second)")
    else:
        lines.append(f"the speed of {kind} depends on the device: measure it on one small file")
    print("\n".join(lines))  # noqa: T201
