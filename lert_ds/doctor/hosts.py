"""The hosts that are asked, by a process on each: here, or over ssh.

    {"ask": "facts", …}  →  standard input of `lert-ds doctor --serve` there
    {…}                  ←  its standard output, a line that is marked

A host that does not answer in time is given up, with the reason, and is not asked again. Under a
launcher the same questions go another way: group.py.
"""

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Protocol

from lert_ds.doctor.serve import MARK

Question = Mapping[str, Any]
Answer = dict[str, Any]

LAST_LINES = 3
"""Of what a host wrote to its standard error, told where it fails."""


class SilenceError(Exception):
    """A host gave no answer; the message says why."""


class Hosts(Protocol):
    """Hosts that can be asked; `names` and `slots` (processes a host) in the order of ranks."""

    names: Sequence[str]
    slots: Sequence[int]

    def ask(
        self, questions: Mapping[str, Question], seconds: float
    ) -> dict[str, Answer | SilenceError]:
        """Ask hosts by name, all at once; every one gets up to `seconds`."""
        ...

    def close(self) -> None:
        """End the conversation."""
        ...


class ProcessHosts:
    """Hosts that a process each answers for."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        slots: Sequence[int],
        secrets: Iterable[str] = (),
    ) -> None:
        """Start `commands`, by host; `secrets` are cut out of whatever a host complains."""
        self.names: Sequence[str] = list(commands)
        self.slots: Sequence[int] = list(slots)
        self._secrets = sorted(set(secrets), key=len, reverse=True)
        self._answerers = {name: _Answerer(command) for name, command in commands.items()}

    def ask(
        self, questions: Mapping[str, Question], seconds: float
    ) -> dict[str, Answer | SilenceError]:
        """Ask hosts by name, all at once; every one gets up to `seconds`."""
        if not questions:
            return {}
        with ThreadPoolExecutor(len(questions)) as pool:
            asked = {
                name: pool.submit(self._answerers[name].ask, question, seconds)
                for name, question in questions.items()
            }
        return {name: self._told(future.result()) for name, future in asked.items()}

    def close(self) -> None:
        """End every process."""
        for answerer in self._answerers.values():
            answerer.close()

    def _told(self, answer: Answer | SilenceError) -> Answer | SilenceError:
        if isinstance(answer, SilenceError):
            text = str(answer)
            for secret in self._secrets:
                text = text.replace(secret, "***")
            return SilenceError(text)
        return answer


class _Answerer:
    """One process and the two threads that read what it says."""

    def __init__(self, command: Sequence[str]) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._lost: str | None = None
        self._ready = False
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as error:
            self._lost = f"{command[0]} cannot be started: {error.strerror}"
            return
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._note, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, question: Question, seconds: float) -> Answer | SilenceError:
        """Return the answer, or why there is none; then this process is not asked again."""
        if self._lost is None:
            try:
                if not self._ready:
                    self._next(seconds, "did not start")
                    self._ready = True
                return self._exchange(question, seconds)
            except SilenceError as silence:
                self._lost = str(silence)
                self.close()
        return SilenceError(self._lost)

    def _exchange(self, question: Question, seconds: float) -> Answer:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # where it is gone, what it said last tells why
            self._process.stdin.write(json.dumps(dict(question) | {"seconds": seconds}) + "\n")
            self._process.stdin.flush()
        answer: Answer = json.loads(self._next(seconds, f"did not answer ({question['ask']})"))
        return answer

    def _next(self, seconds: float, what: str) -> str:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise SilenceError(f"{what} within {seconds:.0f} s") from None
        if line is None:
            self._threads[1].join(1)
            code = self._process.wait()
            said = "; ".join(self._errors[-LAST_LINES:]) or "without a word"
            raise SilenceError(f"ended with exit code {code}: {said}")
        return line

    def _read(self, stream: IO[str]) -> None:
        for line in stream:  # a shell's start-up files may print as well
            if line.startswith(MARK):
                self._lines.put(line.removeprefix(MARK))
        self._lines.put(None)

    def _note(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip():
                self._errors.append(line.strip())

    def close(self) -> None:
        """End the process: it leaves when nobody can ask it any more, or is made to."""
        if not hasattr(self, "_process"):
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
