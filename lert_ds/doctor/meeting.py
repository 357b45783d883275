"""What hosts try with each other: their clocks, the port, the ways between them, an all-reduce."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lert_ds.doctor import network_checks
from lert_ds.doctor.hosts import Answer, Question
from lert_ds.doctor.network_checks import Way
from lert_ds.doctor.row import Row
from lert_ds.doctor.software_checks import Facts

CONNECT_SECONDS = 5.0

Ask = Callable[[Mapping[str, Question]], dict[str, Answer]]
"""Questions by host to the answers of those that answer."""


def compare_clocks(ask: Ask, hosts: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return how far each clock is ahead of the first host's, and how far that may be wrong.

    Each host is asked alone; its answer is as old as half of the round trip.
    """
    found: dict[str, tuple[float, float]] = {}
    for host in hosts:
        started, before = time.perf_counter(), time.time()
        answers = ask({host: {"ask": "time"}})
        half = (time.perf_counter() - started) / 2
        if host in answers:
            found[host] = (answers[host]["seconds"] - before - half, half)
    first = next(iter(found.values()), (0.0, 0.0))
    return {host: (skew - first[0], doubt + first[1]) for host, (skew, doubt) in found.items()}


class Meeting:
    """The hosts of a run, the first of which the others meet at."""

    def __init__(
        self, ask: Ask, facts: Facts, slots: Mapping[str, int], address: str | None, port: int
    ) -> None:
        """Take the hosts.

        Args:
            ask: Asks them.
            facts: Of those that take part, in the order of ranks.
            slots: Processes of each.
            address: MASTER_ADDR; None: the first host's, as the launcher takes it.
            port: MASTER_PORT; 0 for one that is free, where the processes have met already.
        """
        self._ask, self._facts, self._slots = ask, facts, slots
        self._first = next(iter(facts))
        self.port = port
        if address is None and len(facts) == 1:
            address = "127.0.0.1"
        self._address = address or network_checks.launcher_address(facts[self._first])

    def try_ways(self) -> tuple[list[Row], bool]:
        """Try the port and every way between two hosts; return whether all is free.

        Every host listens at a port, the first at MASTER_PORT, and connects to all others.
        """
        answers = self._ask({self._first: {"ask": "listen", "port": self.port}})
        answer = answers.get(self._first, {"refused": "the host does not answer"})
        refused = answer.get("refused")
        rows = [network_checks.check_port(self.port, refused, self._first)] if self.port else []
        others = [host for host in self._facts if host != self._first]
        opened = self._ask({host: {"ask": "listen", "port": 0} for host in others})
        ports = {host: told["port"] for host, told in opened.items() if "port" in told}
        if refused is None:
            ports[self._first] = answer["port"]
        ways = self._connect(ports)
        self._ask({host: {"ask": "hush"} for host in self._facts})
        clear = refused is None and len(ports) == len(self._facts)
        clear = clear and all(way.failure is None for way in ways)
        return rows + network_checks.check_ways(ways), clear

    def _connect(self, ports: Mapping[str, int]) -> list[Way]:
        # The first host is met at its MASTER_ADDR, and gloo binds to what its name says.
        ends = [
            (host, address, port)
            for host, port in ports.items()
            for address in dict.fromkeys(self._addresses(host))
        ]
        wanted = {host: [end for end in ends if end[0] != host] for host in self._facts}
        answers = self._ask({
            host: {"ask": "connect", "to": [end[1:] for end in theirs], "wait": CONNECT_SECONDS}
            for host, theirs in wanted.items()
            if theirs
        })  # fmt: skip
        return [
            Way(host, *end, failure)
            for host, answer in answers.items()
            for end, failure in zip(wanted[host], answer["failures"], strict=True)
        ]

    def _addresses(self, host: str) -> list[str]:
        named = network_checks.address_of(self._facts[host])
        master = self._address if host == self._first else None
        return [address for address in (master, named) if address is not None]

    def all_reduce(self, parameters: int | None) -> list[Row]:
        """Add up numbers over all processes of all hosts."""
        port = self.port
        if not port:
            answer = self._ask({self._first: {"ask": "listen", "port": 0}})
            self._ask({self._first: {"ask": "hush"}})
            port = answer.get(self._first, {}).get("port", 0)
        processes = sum(self._slots[host] for host in self._facts)
        common: dict[str, Any] = {
            "ask": "all_reduce",
            "world_size": processes,
            "address": self._address,
            "port": port,
            "accelerator": self._facts[self._first]["accelerator"]["name"],
        }
        questions, start = {}, 0
        for host in self._facts:
            questions[host] = common | {"first_rank": start, "slots": self._slots[host]}
            start += self._slots[host]
        answers = self._ask(questions)
        rows = network_checks.check_all_reduce(answers, processes, parameters)
        silent = tuple(host for host in self._facts if host not in answers)
        if silent and rows and rows[0].status == "OK":  # it worked, yet a host told nothing
            return []
        return rows
