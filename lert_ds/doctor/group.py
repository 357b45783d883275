"""The hosts that are asked, under a launcher: through the store that the processes meet at.

The first process asks, the first of each host answers, and the others wait for the end. It is a
plain store of keys and JSON: it works where the hosts' own ways to each other do not yet, names who
does not answer, and makes no process group.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined, unused-ignore]

from lert_ds import distributed
from lert_ds.doctor.hosts import Answer, Question, SilenceError
from lert_ds.doctor.serve import answer

LIFE_SECONDS = 3600.0
"""The longest that a process waits for the next question."""


def meet(seconds: float) -> TCPStore:
    """Return the store of this launch; each process says that it is there.

    Raises:
        DistError: the first process's host cannot be reached within `seconds`.
    """
    # torchrun keeps a store of its own at that port, else the first process does.
    ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and distributed.is_main()
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=ours,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
    )
    presence = {
        "host": socket.gethostname(),
        "slots": distributed.local_world_size(),
        "leads": distributed.local_rank() == 0,
    }
    store.set(_key("here", distributed.rank()), json.dumps(presence))
    return store


class GroupHosts:
    """The hosts of a launch, asked by its first process."""

    def __init__(self, store: TCPStore, seconds: float) -> None:
        """Wait for every process up to `seconds`; `absent` has the ranks that did not come."""
        self._store, self._number = store, 0
        end = time.monotonic() + seconds
        came = {
            rank: presence
            for rank in range(distributed.world_size())
            if (presence := self._take(_key("here", rank), end)) is not None
        }
        self.absent = [rank for rank in range(distributed.world_size()) if rank not in came]
        self._leaders: dict[str, int] = {}
        self.slots: Sequence[int] = [entry["slots"] for entry in came.values() if entry["leads"]]
        for rank, entry in came.items():
            if entry["leads"]:
                taken = entry["host"] in self._leaders  # two hosts may have one name
                self._leaders[f"{entry['host']} (rank {rank})" if taken else entry["host"]] = rank
        self.names: Sequence[str] = list(self._leaders)

    def ask(
        self, questions: Mapping[str, Question], seconds: float
    ) -> dict[str, Answer | SilenceError]:
        """Ask hosts by name, all at once; every one gets up to `seconds`."""
        self._number += 1
        tree = {str(self._leaders[n]): dict(q) | {"seconds": seconds} for n, q in questions.items()}
        self._store.set(_key("question", self._number), json.dumps(tree))
        end = time.monotonic() + seconds
        own = _Own(tree.get("0"))  # this process leads its host too, and may be what hangs
        answers: dict[str, Answer | SilenceError] = {}
        for name, question in questions.items():
            rank = self._leaders[name]
            key = _key("answer", self._number, rank)
            found = self._take(key, end) if rank else own.take(end)
            silence = SilenceError(f"did not answer ({question['ask']}) within {seconds:.0f} s")
            answers[name] = silence if found is None else found
        return answers

    def close(self, code: int = 1) -> None:
        """Let every process go, with the exit code of the examination."""
        self._number += 1
        self._store.set(_key("question", self._number), json.dumps({"end": code}))
        time.sleep(0.5)  # the store goes with this process: let the others read

    def _take(self, key: str, end: float) -> Any:
        try:
            left = max(0.05, end - time.monotonic())
            self._store.wait([key], timedelta(seconds=left))
        except DistError:
            return None
        return json.loads(self._store.get(key))


class _Own:
    """The first process's own answer, in a thread; not by the store, which serves one at a time."""

    def __init__(self, question: Question | None) -> None:
        self._answers: queue.Queue[Answer] = queue.Queue()
        if question is not None:
            threading.Thread(
                target=lambda: self._answers.put(answer(question)), daemon=True
            ).start()

    def take(self, end: float) -> Answer | None:
        """Return the answer, None where it does not come in time."""
        try:
            return self._answers.get(timeout=max(0.05, end - time.monotonic()))
        except queue.Empty:
            return None


def wait_and_answer(store: TCPStore) -> int:
    """Answer for this host until the end, where this process leads it; return the exit code."""
    number = 0
    while True:
        number += 1
        key = _key("question", number)
        try:
            store.wait([key], timedelta(seconds=LIFE_SECONDS))
            tree = json.loads(store.get(key))
        except DistError as error:
            print(f"the first process is gone: {error}", file=sys.stderr)  # noqa: T201
            return 1
        if "end" in tree:
            return int(tree["end"])
        rank = str(distributed.rank())
        if rank in tree:
            store.set(_key("answer", number, rank), json.dumps(answer(tree[rank])))


def _key(*parts: object) -> str:
    return "/".join(map(str, ("lert-ds-doctor", *parts)))
