"""`lert-ds COMMAND …`: the one table of commands, logging, and errors told in one line.

A command is a module with `add_arguments(parser)` and `run(arguments)`; it is imported only when it
is called, so `lert-ds --help` needs no heavy library.
"""

import argparse
import difflib
import errno
import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from lert_ds import __version__, config, distributed, launchers
from lert_ds.errors import ConfigError, UserError
from lert_ds.redaction import RedactingFormatter, redact, redact_tree
from lert_ds.termination import EXIT_CODE, Terminated, orderly_termination

COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("lert_ds.prepare", "raw text to an annotated corpus folder"),
    "pretrain": ("lert_ds.pretrain", "corpus folder to a pre-trained LERT, on DeepSpeed"),
    "finetune": ("lert_ds.finetune.run", "pre-trained model and a task's files to its scores"),
    "distill": ("distill.run", "teacher model and corpus to a smaller model, with TextBrewer"),
    "prune": ("prune.run", "model folder to a smaller one: heads, neurons, layers, vocabulary"),
    "recover": ("prune.recover", "pruned model and corpus to the same model, trained again"),
    "export": ("prune.export.run", "model folder to graphs for the edge, fp32 and int8"),
    "benchmark": ("prune.benchmark.run", "model and edge folders side by side, in one table"),
    "benchmark pretrain": ("lert_ds.training_benchmark.run", "where a training step's time goes"),
    "convert": ("lert_ds.convert.run", "TensorFlow 1 checkpoint to model folder, and back"),
    "predict": ("lert_ds.predict", "fill [MASK], and tag the words of sentences"),
    "card": ("lert_ds.card", "the model card of a model folder; its upload to the hub"),
    "report": ("lert_ds.report.run", "runs and benchmarks as one HTML page"),
    "supervise": ("lert_ds.supervise", "a training that is started again where it fails"),
    "plan": ("lert_ds.plan.run", "a pre-training on machines that are not there, by formula"),
    "doctor": ("lert_ds.doctor.run", "what would stop a run, found before it starts"),
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the user can mend: no space, no quota, a disk that cannot be written to."""

C = TypeVar("C", bound=config.Config)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 the user's error in one line, 1 ours with a traceback."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        launchers.adopt_ranks()
        set_up_logging()
        with _termination():
            _run(arguments)
    except UserError as error:
        _tell(f"error: {error}")
        _exit(2)
    except Terminated:
        _tell("ended by SIGTERM; the same command goes on with what is finished, or starts over")
        _exit(EXIT_CODE)
    except KeyboardInterrupt:
        _exit(130)
    except BrokenPipeError:  # `lert-ds … | head`
        _exit(141)
    except Exception as error:  # noqa: BLE001 - the last line of defence: told whole, exit 1
        if isinstance(error, OSError) and error.errno in _FULL:
            where = error.filename or "a file of the output"
            advice = "free space, or name another place, and run it again"
            _tell(f"error: {where}: {error.strerror}; {advice}")
            _exit(2)
        sys.stderr.write(redact(traceback.format_exc()))
        _exit(1)


def _termination() -> AbstractContextManager[None]:
    """Return what turns SIGTERM into an orderly end.

    Not where other processes are joined to this one: it would end while they wait for it.
    """
    return orderly_termination() if distributed.world_size() == 1 else nullcontext()


def _tell(sentence: str) -> None:
    prefix = f"[rank {distributed.rank()}] " if distributed.rank() else ""
    print(redact(f"{prefix}{sentence}"), file=sys.stderr, flush=True)  # noqa: T201


def _exit(code: int) -> None:
    """Leave at once where other processes are joined to this one.

    The orderly way would wait for them in a collective that they have not reached, or abort in the
    communication library's threads; the launcher ends the others when it sees the code.
    """
    sys.stderr.flush()
    if distributed.world_size() > 1:
        os._exit(code)
    sys.exit(code)


def _run(argv: list[str]) -> None:
    # The launcher puts --local_rank=N before our arguments; the rank comes from the environment.
    argv = [word for word in argv if not word.startswith(("--local_rank", "--local-rank"))]
    name = next((word for word in argv if not word.startswith("-")), None)
    before = argv if name is None else argv[: argv.index(name)]
    words = argv[len(before) + 1 :]
    if words and f"{name} {words[0]}" in COMMANDS:  # a command of two words
        name = f"{name} {words.pop(0)}"
    parser = _top_parser()
    parser.parse_args(before)
    if name is None:
        parser.error("a COMMAND is needed")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"{name}: no such command{hint}; there are {', '.join(COMMANDS)}")
    module, summary = COMMANDS[name]
    command = importlib.import_module(module)
    own = argparse.ArgumentParser(
        prog=f"lert-ds {name}",
        description=summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(own)
    started = None
    if own.get_default("started") is not None and "--" in words:  # what follows is a command line
        place = words.index("--")
        words, started = words[:place], words[place + 1 :]
    # Intermixed: an option may stand between the configuration and an override.
    arguments = own.parse_intermixed_args(words)
    arguments.started = started
    command.run(arguments)


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="lert-ds",
        usage="lert-ds [--help] [--version] COMMAND …",
        description="Train and compress Chinese LERT models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\nlert-ds COMMAND --help tells the keys of a command\n"
        "many processes: deepspeed [launcher flags] --module lert_ds COMMAND CONFIG "
        "[key.path=value …]",
    )
    parser.add_argument("--version", action="version", version=f"lert-ds {__version__}")
    return parser


def add_config_arguments(
    parser: argparse.ArgumentParser, cls: type[config.Config], preset_folder: Path
) -> None:
    """Give `parser` the arguments of a command that is driven by a configuration."""
    command = parser.prog.split()[-1]
    presets = ", ".join(sorted(path.stem for path in preset_folder.glob(f"{command}-*.toml")))
    parser.add_argument("config", metavar="CONFIG", help="a .toml file, or a preset by name")
    parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="wins over the file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration and the arithmetic, and stop",
    )
    parser.set_defaults(config_class=cls, preset_folder=preset_folder, command=command)
    parser.epilog = f"presets: {presets}\n\nkeys (key=default):\n{config.describe(cls)}"


def add_training_arguments(
    parser: argparse.ArgumentParser, cls: type[config.Config], preset_folder: Path
) -> None:
    """Give `parser` the arguments of a command that trains."""
    add_config_arguments(parser, cls, preset_folder)
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="with --dry-run: reckon with N processes (default: those that run)",
    )


def read_config(cls: type[C], arguments: argparse.Namespace) -> C:
    """Return the configuration that the arguments name."""
    path = config.find(arguments.config, [arguments.preset_folder], arguments.command)
    return config.load(cls, path, arguments.overrides)


def print_config(resolved: config.Config) -> None:
    """Print a resolved configuration as JSON, for --dry-run."""
    tree = redact_tree(config.dump(resolved))
    print(json.dumps(tree, indent=2, ensure_ascii=False))  # noqa: T201


def set_up_logging() -> None:
    """Log to standard error: rank 0 from INFO, the others from WARNING, LERT_DS_LOG overrides."""
    level = os.environ.get("LERT_DS_LOG", "INFO" if distributed.is_main() else "WARNING")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # DeepSpeed 0.19 calls them by their old names; the user can do nothing about it.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    for noisy in ("httpx", "jieba", "filelock", "fsspec", "urllib3", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
