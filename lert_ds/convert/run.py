"""`lert-ds convert SOURCE OUTPUT`: TensorFlow 1 checkpoint to model folder, or back.

    $ lert-ds convert chinese_lert_base_L-12_H-768_A-12.zip models/lert-base
    207 variables moved; left out: none
    $ lert-ds convert models/lert-base tf/lert-base
    207 variables moved; left out: none

What SOURCE is says which way: a .zip, a folder with a checkpoint or the name of one is of
TensorFlow; a model folder, or a name on the hub, is ours.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lert_ds import machine
from lert_ds.convert.mapping import Match
from lert_ds.convert.source import CheckpointFiles, Choice, is_checkpoint, open_source
from lert_ds.convert.to_checkpoint import CheckpointPlan
from lert_ds.convert.to_folder import FolderPlan
from lert_ds.errors import UserError
from lert_ds.files import refuse_unwritable

log = logging.getLogger(__name__)

_WRITTEN = {
    *("config.json", "generation_config.json", "model.safetensors", "run.json", "vocab.txt"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("configuration_lert.py", "modeling_lert.py", "lert_config.json", "lert_model.ckpt.index"),
    *("lert_model.ckpt.data-00000-of-00001", "README.md"),
}
"""All that a conversion writes, either way: what --overwrite may remove."""

_EPILOG = """\
examples:
  lert-ds convert chinese_lert_base_L-12_H-768_A-12.zip models/lert-base
  lert-ds convert tf/output --checkpoint model.ckpt-1000 --config lert_config.json models/mine
  lert-ds convert models/mine tf/mine                    for the authors' TensorFlow 1 code
  lert-ds convert models/mine tf/mine --dry-run          the table of names, and stop

Needs TensorFlow: pip install 'lert-ds[tf]'."""

Plan = FolderPlan | CheckpointPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="of TensorFlow: a .zip, a folder, a checkpoint; of ours: a model folder, a hub name",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the folder to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an output of an earlier conversion"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what becomes what, and its shape, and stop"
    )
    choice = parser.add_argument_group("where SOURCE leaves it open which file is meant")
    choice.add_argument("--checkpoint", metavar="NAME", help="of several: without its .index")
    choice.add_argument("--config", type=Path, metavar="FILE", help="bert_config.json or the like")
    choice.add_argument("--vocabulary", type=Path, metavar="FILE", help="vocab.txt")
    parser.epilog = _EPILOG


def run(arguments: argparse.Namespace) -> None:
    """Convert, or print what a conversion would do."""
    source, output = arguments.source, arguments.output
    if not arguments.dry_run:
        _refuse_output(source, output, arguments.overwrite)
    with _plan(arguments) as plan:
        if arguments.dry_run:
            sys.stdout.write("".join(f"{line}\n" for line in table(plan.match)))
            return
        _tell_missing(source, plan.match)
        plan.write(output, _record(source, plan))
    log.info("%s", summary(plan.match))
    log.info("written: %s", output)


@contextmanager
def _plan(arguments: argparse.Namespace) -> Iterator[Plan]:
    choice = Choice(arguments.checkpoint, arguments.config, arguments.vocabulary)
    path = Path(arguments.source)
    if is_checkpoint(path, choice):
        files: CheckpointFiles
        with open_source(path, choice) as files:
            yield FolderPlan(files)
        return
    for option, given in (
        ("--checkpoint", choice.checkpoint),
        ("--config", choice.configuration),
        ("--vocabulary", choice.vocabulary),
    ):
        if given is not None:
            raise UserError(
                f"{option} {given}: {path} holds no TensorFlow checkpoint (no .index file), which "
                "this option is for; mend the path or leave the option out"
            )
    yield CheckpointPlan(arguments.source)


def table(match: Match) -> list[str]:
    """Return what becomes what as lines: variable, shape, parameter; then what does not."""
    width = max(len(entry.variable) for entry in match.entries)
    lines = []
    for entry in match.entries:
        shape = f"{list(entry.shape)}{' transposed' if entry.transposed else ''}"
        lines.append(f"{entry.variable:<{width}}  {entry.parameter}  {shape}")
    lines += [f"{name:<{width}}  left out: {why}" for name, why in match.left_out.items()]
    lines += [f"{part:<{width}}  not in the source" for part in match.missing]
    return [*lines, summary(match)]


def summary(match: Match) -> str:
    """Return one line: how many weights are moved, and what is left out why."""
    counts = Counter(match.left_out.values())
    told = ", ".join(f"{number} ({why})" for why, number in counts.items()) or "none"
    return f"{len(match.entries)} variables moved; left out: {told}"


def _record(source: str, plan: Plan) -> dict[str, Any]:
    return {
        "converted_from": source,
        "mapped": len(plan.match.entries),
        "left_out": plan.match.left_out,
        "missing": list(plan.match.missing),
        "versions": machine.description(("lert-ds", "tensorflow-cpu", "tensorflow", "torch")),
    }


def _tell_missing(source: str, match: Match) -> None:
    if match.missing:
        log.warning(
            "%s: it has no %s; none is made, and the output lacks them", source, _or(match.missing)
        )


def _or(words: Iterable[str]) -> str:
    return ", no ".join(words)


def _refuse_output(source: str, output: Path, overwrite: bool) -> None:
    """Refuse an output that a conversion must not replace.

    Raises:
        UserError: it is there, or is or holds the source.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: it is a file; name a folder")
    refuse_unwritable(output, "OUTPUT")
    place = Path(source)
    if place.exists() and place.resolve().is_relative_to(output.resolve()):
        raise UserError(f"{output}: it is the source, or holds it; name another folder")
    names = sorted(path.name for path in output.iterdir()) if output.exists() else []
    foreign = [name for name in names if name not in _WRITTEN]
    if foreign:
        raise UserError(
            f"{output}: the folder holds {foreign[0]}, which no conversion has written; "
            "name a new folder"
        )
    if names and not overwrite:
        raise UserError(f"{output}: it is there already; name another folder or say --overwrite")
