"""Ends a process whose training cannot go on: no run waits for ever, and none dies without a word.

    every process   a thread tells each second, on a store of rank 0: "I live, at step 17"
    rank 0          reads them all; one that is silent, stuck or failed: a verdict for everyone
    every process   reads the verdict, and that rank 0 lives; prints why, and exits

A collective waits for its peers in native code, some for ever (DeepSpeed's shared memory), and a
launcher sees only the exits on its own host. The thread needs neither. The store waits for ever too
where rank 0's host stands still or a link is cut: a second thread talks, the first one only looks
at the clock. Where native code holds the interpreter, so that neither runs, the timer of
`faulthandler` ends the process.
"""

import contextlib
import datetime
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lert_ds import distributed
from lert_ds.redaction import redact
from lert_ds.train.peers import Peers

_POLL_SECONDS = 1.0
_LAST_RESORT = 1.5
"""Times the timeout until `faulthandler` ends a process whose threads cannot run."""
_LEAVING_SECONDS = 30.0
"""For a process that fails to leave the others, then it is ended."""
_NAMED = 4
"""Processes that a message names."""
_CONNECTING_SECONDS = 30.0
"""At least, to reach the store of rank 0, which is there already."""
_STDERR = 2
"""faulthandler writes to the descriptor: who has put something else in sys.stderr's place."""

FAILED = 1


@dataclass
class _Seen:
    """What rank 0 knows of one process."""

    beat: int = -1
    progress: int = -1
    heard: float = 0.0
    moved: float = 0.0
    where: str = "rank 0"


class Watchdog:
    """Watches this process and its peers from `start` to `close`."""

    def __init__(
        self, timeout_seconds: float, peers: Peers, on_verdict: Callable[[str], None]
    ) -> None:
        """Watch for `timeout_seconds` without progress; all processes must do so together.

        `on_verdict` is called on rank 0 with the reason, before the processes end.
        """
        self._timeout = timeout_seconds
        self._poll = min(_POLL_SECONDS, timeout_seconds / 10)
        self._peers, self._on_verdict = peers, on_verdict
        self._host = socket.gethostname()
        # Where the launcher dies, nobody would end this process any more.
        self._parent = None if peers.alone else os.getppid()
        self._progress, self._beat = 0, 0
        self._step, self._phase = 0, "starting"
        self._failure: dict[str, Any] | None = None
        self._recorded = False
        self._closing = threading.Event()
        self._store: Any = None
        self._seen = [_Seen() for _ in range(distributed.world_size())]
        self._heard = time.monotonic()
        self._told: dict[str, Any] | None = None
        """The verdict of rank 0."""
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._talker = threading.Thread(target=self._talk, name="watchdog's talk", daemon=True)

    def start(self) -> None:
        """Begin to watch; all processes must call it."""
        self._open_store()
        self._arm()
        self._heard = time.monotonic()
        self._watcher.start()
        if self._store is not None:
            self._talker.start()

    def beat(self, step: int, phase: str) -> None:
        """Tell that the training moves: a micro-batch, an evaluated batch, a save."""
        self._step, self._phase = step, phase
        self._progress += 1

    def fail(self, message: str, code: int = FAILED) -> None:
        """Stop watching and tell the others that this process ends with `code`: they end too."""
        self._failure = {"message": f"{self.whereabouts()}: {message}", "code": code}
        self._closing.set()
        if self._store is None:
            return
        # Leaving the group can wait for peers that are gone. The thread's own timer would take the
        # place of this one.
        self._watcher.join(2 * self._poll)
        faulthandler.dump_traceback_later(_LEAVING_SECONDS, exit=True, file=_STDERR)
        try:
            self._tell()
            if distributed.is_main():
                self._pronounce(self._failure)
        except (RuntimeError, OSError):
            return  # rank 0 is gone, and the others know

    def close(self) -> None:
        """Stop watching at the end of a training; all processes must call it."""
        self._peers.gather(None)  # nobody is missed from here on
        self._closing.set()
        self._watcher.join()
        if self._store is not None:
            self._talker.join(self._timeout)
        self._peers.gather(None)  # the last has used the store
        self._store = None

    def whereabouts(self) -> str:
        """Return which process this is and how far it is."""
        return f"rank {distributed.rank()} on {self._host}, step {self._step}, {self._phase}"

    def _open_store(self) -> None:
        if self._peers.alone:
            return
        timeout = datetime.timedelta(seconds=max(self._timeout / 3, _CONNECTING_SECONDS))
        server = None
        if distributed.is_main():
            server = TCPStore("0.0.0.0", 0, None, True, timeout, wait_for_workers=False)
        port = self._peers.gather(server.port if server else None)[0]
        self._store = server or TCPStore(
            os.environ["MASTER_ADDR"], port, None, False, timeout, wait_for_workers=False
        )
        self._tell()
        if distributed.is_main():
            self._store.set("verdict", "null")
        self._peers.gather(None)  # every key is there

    def _tell(self) -> None:
        self._beat += 1
        state = {
            "beat": self._beat,
            "progress": self._progress,
            "where": self.whereabouts(),
            "failure": self._failure,
        }
        self._store.set(f"beat-{distributed.rank()}", json.dumps(state))

    def _talk(self) -> None:
        """Tell and ask, on the store; it may wait for ever."""
        while not self._closing.wait(self._poll):
            try:
                self._tell()
                verdict = self._judge_all() if distributed.is_main() else self._ask()
            except (RuntimeError, OSError) as error:
                told = f"{self._seen[0].where}: does not answer ({_first_line(error)})"
                verdict = {"message": told}
            self._heard = time.monotonic()
            self._told = self._told or verdict

    def _watch(self) -> None:
        own = _Seen()
        while not self._closing.wait(self._poll):
            self._arm()
            verdict = self._told or self._judge_self(own)
            if verdict is not None and not self._closing.is_set():
                self._end(verdict)
        if self._failure is None:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Have this process ended where its threads cannot run for long."""
        seconds = self._timeout * _LAST_RESORT
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)

    def _judge_self(self, own: _Seen) -> dict[str, Any] | None:
        now = time.monotonic()
        if own.progress != self._progress:
            own.progress, own.moved = self._progress, now
        if self._parent is not None and os.getppid() != self._parent:
            return {"message": f"{self.whereabouts()}: its launcher is gone"}
        if self._peers.alone and now - own.moved > self._timeout:
            return {"message": f"no progress for {self._timeout:g} s: {self.whereabouts()}"}
        if not self._peers.alone and now - self._heard > self._timeout:
            return self._silent(self._seen[0].where)
        return None

    def _silent(self, where: str) -> dict[str, Any]:
        return {"message": f"{where}: not heard of for {self._timeout:g} s"}

    def _judge_all(self) -> dict[str, Any] | None:
        """Return the verdict on the process that holds the others up, after telling them."""
        now, seen = time.monotonic(), self._seen
        states = [
            json.loads(text)
            for text in self._store.multi_get([f"beat-{rank}" for rank in range(len(seen))])
        ]
        for one, state in zip(seen, states, strict=True):
            if one.beat != state["beat"]:
                one.beat, one.heard = state["beat"], now
            if one.progress != state["progress"]:
                one.progress, one.moved = state["progress"], now
        verdict = self._find_fault(seen, states, now)
        if verdict is not None:
            self._pronounce(verdict)
        return verdict

    def _pronounce(self, verdict: dict[str, Any]) -> None:
        # Recorded first: the others' exits may end the main thread, and with it this process.
        self._record(verdict)
        self._store.set("verdict", json.dumps(verdict))
        time.sleep(3 * self._poll)  # the others read it; then the store goes with rank 0

    def _find_fault(
        self, seen: list[_Seen], states: list[dict[str, Any]], now: float
    ) -> dict[str, Any] | None:
        for state in states:
            if state["failure"] is not None:
                return dict(state["failure"])
        for one, state in zip(seen, states, strict=True):
            if now - one.heard > self._timeout:
                return self._silent(state["where"])
        stood = [now - one.moved for one in seen]
        if max(stood) <= self._timeout:
            return None
        # One that is silent, or furthest behind, first: the others wait for it, and may have moved
        # last a little earlier.
        still = [rank for rank, seconds in enumerate(stood) if seconds > self._timeout / 2]
        silent = {r: now - seen[r].heard for r in still if self._is_silent(seen[r], now)}
        still.sort(key=lambda r: (-silent.get(r, 0), seen[r].progress, seen[r].moved))
        told = "; ".join(
            states[r]["where"] + (f", not heard of for {silent[r]:.0f} s" if r in silent else "")
            for r in still[:_NAMED]
        )
        return {"message": f"no progress for {self._timeout:g} s: {told}"}

    def _is_silent(self, one: _Seen, now: float) -> bool:
        return now - one.heard > self._timeout / 2

    def _ask(self) -> dict[str, Any] | None:
        """Return rank 0's verdict, or that it is silent."""
        verdict, text = (json.loads(t) for t in self._store.multi_get(["verdict", "beat-0"]))
        now, main = time.monotonic(), self._seen[0]
        if main.beat != text["beat"]:
            main.beat, main.heard, main.where = text["beat"], now, text["where"]
        if verdict is None and now - main.heard > self._timeout:
            return self._silent(text["where"])
        return verdict  # type: ignore[no-any-return]

    def _record(self, verdict: dict[str, Any]) -> None:
        """Hand the verdict on once, on rank 0."""
        if distributed.is_main() and not self._recorded:
            self._recorded = True
            with contextlib.suppress(OSError):  # a full disk
                self._on_verdict(_advised(verdict))

    def _end(self, verdict: dict[str, Any]) -> None:
        message = _advised(verdict)
        try:
            self._record(verdict)
            print(  # noqa: T201
                f"[{self.whereabouts()}] error: {message}", file=sys.stderr, flush=True
            )
            if self.whereabouts() in verdict["message"]:  # where this one hangs
                faulthandler.dump_traceback(all_threads=True, file=_STDERR)
        finally:  # where nobody reads standard error any more, too
            os._exit(verdict.get("code", FAILED))


def _advised(verdict: dict[str, Any]) -> str:
    message = redact(verdict["message"])
    return f"{message}. Every process ends; start again to go on from the newest checkpoint"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
