"""`lert-ds supervise -- COMMAND …`: a training that is started again where it fails.

    lert-ds supervise --restarts 5 -- deepspeed --module lert_ds pretrain pretrain-large …

Each start goes on from the newest whole checkpoint. A user's error (exit 2) and a stop that was
asked for end it; so do `--restarts` failures in a row without a new checkpoint between them. A
signal is passed on to the training itself, not to its launcher, which would end it after 30 s: it
saves, and all exit 0.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lert_ds import cli, config, run_lock
from lert_ds.errors import ConfigError
from lert_ds.redaction import redact
from lert_ds.termination import STOP_SIGNALS
from lert_ds.train.checkpoint_folder import tags

USER_ERROR = 2
LONGEST_WAIT_SECONDS = 300.0
GRACE_SECONDS = 40.0
"""From the second signal until what still runs is killed: launchers give their processes 30 s."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    failures = "failures in a row without a new checkpoint (default: 10)"
    parser.add_argument("--restarts", type=int, default=10, metavar="N", help=failures)
    wait = "before the first restart; doubled each time, up to 300 (default: 5)"
    parser.add_argument("--wait-seconds", type=float, default=5.0, metavar="S", help=wait)
    folder = "the run folder, where COMMAND is a script of yours that hides it"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=folder)
    parser.usage = f"{parser.prog} [--restarts N] [--wait-seconds S] [--output FOLDER] -- COMMAND …"
    parser.set_defaults(started=[])  # words after --, as they are


def run(arguments: argparse.Namespace) -> None:
    """Start the command until it is done, and exit as it did."""
    if not arguments.started:
        raise ConfigError(
            "say how the training is started, after --: lert-ds supervise -- COMMAND …"
        )
    if arguments.restarts < 0 or not arguments.wait_seconds >= 0:
        raise ConfigError("--restarts and --wait-seconds must be 0 or more")
    output = arguments.output or output_of(arguments.started)
    supervisor = Supervisor(arguments.started, output, arguments.restarts, arguments.wait_seconds)
    code = supervisor.run()
    if code:
        sys.exit(code)


def output_of(command: Sequence[str]) -> Path | None:
    """Return the run folder that a command of ours writes to, None for any other command."""
    ours = [n for n, word in enumerate(command) if Path(word).name in ("lert-ds", "lert_ds")]
    if not ours:
        return None
    name, *rest = [*command[ours[0] + 1 :], ""]
    words = [word for word in rest if word and not word.startswith("-")]
    if name not in cli.COMMANDS or not words:
        return None
    preset, *overrides = words
    package = Path(__file__).parents[1] / cli.COMMANDS[name][0].partition(".")[0]
    path = config.find(preset, [package / "configs"], name)
    value = config.read_tree(path, overrides).get("output")
    return Path(value) if isinstance(value, str) else None


class Supervisor:
    """One command, started again where it fails."""

    def __init__(
        self, command: Sequence[str], output: Path | None, restarts: int, wait_seconds: float
    ) -> None:
        """Take what to start, the run folder where it is known, and how often."""
        self._command, self._output = list(command), output
        self._restarts, self._wait_seconds = restarts, wait_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._signals = 0

    def run(self) -> int:
        """Run to the end and return the exit code."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._pass_on)
        failures, started = 0, time.time()
        while True:
            before = self._newest()
            code = self._start(again=failures > 0 or before > 0)
            if code == 0 and not self._signals and not self._finished_since(started):
                code = 1  # the launcher was killed: DeepSpeed's exits 0 then
            if code == 0 or self._signals or code == USER_ERROR:
                return code
            failures = 1 if self._newest() > before else failures + 1
            if failures > self._restarts:
                self._say(f"exit {code}; {failures} failures without a new checkpoint, giving up")
                return code
            wait = min(self._wait_seconds * 2 ** (failures - 1), LONGEST_WAIT_SECONDS)
            self._say(f"exit {code}; {self._where()}; starts again in {wait:g} s")
            if self._sleep(wait):
                return 0

    def _start(self, again: bool) -> int:
        """Run the command once and return its exit code; nothing of it runs on then."""
        # What replaced an older run must not replace this one.
        kept = ["overwrite=false", "resume=auto"] if again and self._output is not None else []
        # A session of its own: a Ctrl-C reaches it through us alone.
        self._child = subprocess.Popen([*self._command, *kept], start_new_session=True)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._child.wait(timeout=1.0)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)  # what a dead launcher left
        self._wait_for_lock()
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        child = self._child
        if child is None or child.poll() is not None:
            return
        if self._signals == 1:
            holder = run_lock.holder(self._output) if self._output is not None else None
            with contextlib.suppress(ProcessLookupError):
                if holder is not None and holder.is_here:
                    os.kill(holder.process, signal.SIGUSR1)
                else:
                    os.killpg(child.pid, number)
            self._say(
                f"{signal.Signals(number).name}: the training saves and stops; once more ends it"
            )
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _newest(self) -> int:
        """Return the step of the newest checkpoint, 0 where there is none."""
        if self._output is None:
            return 0
        names = tags(self._output / "checkpoints")
        return int(names[0].removeprefix("step-")) if names else 0

    def _finished_since(self, moment: float) -> bool:
        if self._output is None:
            return True
        result = self._output / run_lock.FINISHED
        return result.is_file() and result.stat().st_mtime >= moment - 1

    def _where(self) -> str:
        step = self._newest()
        return f"the newest checkpoint is step-{step}" if step else "no checkpoint yet"

    def _wait_for_lock(self) -> None:
        """Wait for processes of the start before on other hosts, or that no launcher ends."""
        end = time.monotonic() + GRACE_SECONDS
        while self._output is not None and run_lock.holder(self._output) and time.monotonic() < end:
            time.sleep(0.5)

    def _sleep(self, seconds: float) -> bool:
        """Wait, and return whether a signal came meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._signals:
            time.sleep(0.1)
        return bool(self._signals)

    def _say(self, text: str) -> None:
        print(f"supervise: {redact(text)}", file=sys.stderr, flush=True)  # noqa: T201
