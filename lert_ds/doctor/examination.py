"""The examination: what is asked of the hosts, in which order, and the rows that come of it.

    time, facts, plan → software → ports and ways → output, corpus → memory → all-reduce

What depends on something that failed is left out, and a row says so.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lert_ds.doctor import (
    deepspeed_check,
    memory_checks,
    network_checks,
    software_checks,
    storage_checks,
)
from lert_ds.doctor.hosts import Answer, Hosts, Question, SilenceError
from lert_ds.doctor.plan import Plan
from lert_ds.doctor.row import Row
from lert_ds.errors import ConfigError
from lert_ds.train import deepspeed_config

CONNECT_SECONDS = 5.0


@dataclass
class Request:
    """What is to be examined."""

    folder: str
    """Working folder of the run."""
    port: int
    """MASTER_PORT."""
    address: str | None
    """MASTER_ADDR; None: the first host's, as the launcher takes it."""
    plan: Callable[[], Plan] | None
    """Works out the plan; None without a configuration."""
    seconds: float
    """The longest that one question may take."""
    launched: bool = False
    """Whether a launcher started this: then ssh and the port have shown that they work."""
    rows: list[Row] = field(default_factory=list)
    """What was found before: of pdsh, of .deepspeed_env."""


class Examination:
    """Asks hosts and collects rows."""

    def __init__(self, hosts: Hosts, request: Request) -> None:
        """Take the hosts and what is to be examined."""
        self._hosts, self._request = hosts, request
        self._there = list(hosts.names)
        self._slots = dict(zip(hosts.names, hosts.slots, strict=True))
        self.rows = list(request.rows)

    def run(self) -> list[Row]:
        """Return every row."""
        with ThreadPoolExecutor(1) as pool:
            planned = None if self._request.plan is None else pool.submit(self._request.plan)
            skews = self._ask_clocks()
            facts = self._ask_all({"ask": "facts"})
            plan = self._plan_rows(planned)
        if facts:
            self._software(facts, plan, skews)
            way_is_free = self._network(facts)
            shards = self._storage(plan)
            self._memory(facts, plan, shards)
            self._all_reduce(facts, plan, way_is_free)
        return self.rows

    def _ask(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        """Ask hosts that still answer; one that does not is told in a row and left out."""
        answers = self._hosts.ask(
            {host: each for host, each in questions.items() if host in self._there},
            self._request.seconds,
        )
        given = {}
        for host, answer in answers.items():
            if isinstance(answer, SilenceError):
                self._there.remove(host)
                self.rows.append(_silent(host, str(answer)))
            elif "error" in answer:
                asked = questions[host]["ask"]
                self.rows.append(
                    Row(
                        "host",
                        "FAIL",
                        f"cannot be asked ({asked}): {answer['error']}",
                        "mend what it says",
                        (host,),
                    )
                )
            else:
                given[host] = answer
        return given

    def _ask_all(self, question: Question) -> dict[str, Answer]:
        return self._ask(dict.fromkeys(self._there, question))

    def _ask_clocks(self) -> dict[str, tuple[float, float]]:
        """Return how far each clock is ahead of the first host's, and how far that may be wrong.

        A host is asked alone, and half of the round trip is what its answer took.
        """
        self._ask_all({"ask": "time"})  # the first answer waits for the host to start
        found = {}
        for host in list(self._there):
            started, before = time.perf_counter(), time.time()
            if host in (answers := self._ask({host: {"ask": "time"}})):
                half = (time.perf_counter() - started) / 2
                found[host] = (answers[host]["seconds"] - before - half, half)
        first = next(iter(found.values()), (0.0, 0.0))
        return {
            host: (skew - first[0], doubt + first[1] * (host != next(iter(found))))
            for host, (skew, doubt) in found.items()
        }

    def _plan_rows(self, planned: "Future[Plan] | None") -> Plan | None:
        if planned is None:
            self.rows.append(
                Row(
                    "configuration",
                    "SKIP",
                    "no CONFIG given: its JSON, batch, memory, corpus and output are not looked at",
                )
            )
            return None
        try:
            plan = planned.result()
        except ConfigError as error:
            self.rows += [
                Row("configuration", "FAIL", str(error), "correct the configuration"),
                Row("memory", "SKIP", "the configuration has to hold first; corpus and output too"),
            ]
            return None
        path = plan.config["deepspeed"]
        if problem := deepspeed_check.problem_of(plan.deepspeed):
            self.rows.append(
                Row(
                    "configuration",
                    "FAIL",
                    f"{path}: DeepSpeed refuses {problem}",
                    "correct that key of the JSON",
                )
            )
        else:
            train = plan.config["train"]
            self.rows.append(
                Row(
                    "configuration",
                    "OK",
                    f"{plan.command}: {plan.parameters:,} "
                    f"parameters, {train['batch_size']:,} instances a step over "
                    f"{plan.processes} processes; {path} holds",
                )
            )
        return plan

    def _software(
        self, facts: Mapping[str, Answer], plan: Plan | None, skews: Mapping[str, Any]
    ) -> None:
        several = len(self._hosts.names) > 1
        self.rows += software_checks.check_versions(facts)
        self.rows += software_checks.check_folder(facts, self._request.folder)
        self.rows += software_checks.check_accelerator(facts, self._slots)
        self.rows += software_checks.check_ops(facts, plan)
        self.rows += software_checks.check_environment(facts)
        if several:
            self.rows += network_checks.check_clocks(skews)
            self.rows += network_checks.check_names(facts)
        self.rows += network_checks.check_interfaces(facts)

    def _network(self, facts: Mapping[str, Answer]) -> bool:
        """Try the port and the ways between hosts; return whether an all-reduce could meet."""
        hosts = [host for host in self._there if host in facts]
        first, port = hosts[0], self._request.port
        if self._request.launched:
            self.rows.append(Row("port", "OK", f"the processes met at port {port}", hosts=(first,)))
            port = 0
        answers = self._ask({first: {"ask": "listen", "port": port}})
        refused = answers.get(first, {}).get("refused", "no answer" if not answers else None)
        if not self._request.launched:
            self.rows.append(network_checks.check_port(port, refused, first))
        ports = {first: answers[first]["port"]} if first in answers and not refused else {}
        opened = {"ask": "listen", "port": 0}
        others = self._ask(dict.fromkeys(hosts[1:], opened))
        ports |= {host: answer["port"] for host, answer in others.items() if "port" in answer}
        clear = self._try_ways(facts, ports)
        self._ask({host: {"ask": "hush"} for host in hosts})
        return clear and refused is None

    def _try_ways(self, facts: Mapping[str, Answer], ports: Mapping[str, int]) -> bool:
        places = {}
        for host, port in ports.items():
            if (address := self._address(facts, host)) is not None:
                places[host] = (address, port)
        wanted = {
            host: [other for other in places if other != host] for host in facts if len(facts) > 1
        }
        answers = self._ask(
            {
                host: {"ask": "connect", "to": [places[o] for o in others], "wait": CONNECT_SECONDS}
                for host, others in wanted.items()
            }
        )
        failures = {
            (host, other): reason
            for host, answer in answers.items()
            for other, reason in zip(wanted[host], answer["failures"], strict=True)
        }
        self.rows += network_checks.check_ways(failures, places)
        return not any(failures.values()) and len(places) == len(facts)

    def _address(self, facts: Mapping[str, Answer], host: str) -> str | None:
        if host == self._there[0] and self._request.address is not None:
            return self._request.address
        if len(self._hosts.names) == 1:
            return "127.0.0.1"
        return network_checks.address_of(facts[host])

    def _storage(self, plan: Plan | None) -> int | None:
        """Look at the folders of a run; return the shards of its corpus, where it can be read."""
        if plan is None:
            return None
        self.rows += self._check_files(plan)
        output = str(Path(plan.config["output"]).absolute())
        self.rows += storage_checks.check_output(
            self._ask_all({"ask": "output", "path": output}), plan
        )
        self.rows += self._shared(output)
        shards = None
        for folders in plan.corpora:
            answers = self._ask_all({"ask": "corpus", "folders": folders})
            self.rows += storage_checks.check_corpus(answers, ", ".join(folders))
            counts = [answer["shards"] for answer in answers.values() if "shards" in answer]
            shards = max([shards or 0, *counts]) if counts else shards
        return shards

    def _check_files(self, plan: Plan) -> list[Row]:
        paths = {str(deepspeed_config.find(Path(plan.config["deepspeed"]))): "deepspeed"}
        for key in ("model", "teacher", "init_from"):
            value = plan.config.get(key) or []
            for name in [value] if isinstance(value, str) else value:
                if Path(name).exists():  # else a name on the hub
                    paths[name] = key
        answers = self._ask_all({"ask": "files", "paths": list(paths)})
        return storage_checks.check_files(answers, paths)

    def _shared(self, output: str) -> list[Row]:
        if len(self._there) < 2:
            return []
        first, *others = self._there
        written = self._ask({first: {"ask": "write", "path": output}})
        if first not in written:
            return []
        mark = written[first]["path"]
        seen = self._ask({host: {"ask": "see", "path": mark} for host in others})
        self._ask({first: {"ask": "remove", "path": mark}})
        told = {host: bool(answer["seen"]) for host, answer in seen.items()}
        return storage_checks.check_shared(told, first, output)

    def _memory(self, facts: Mapping[str, Answer], plan: Plan | None, shards: int | None) -> None:
        if plan is not None:
            self.rows += memory_checks.check_memory(facts, self._slots, plan)
        self.rows += memory_checks.check_shared_memory(facts, self._slots)
        self.rows += memory_checks.check_limits(facts, shards)
        self.rows += storage_checks.check_temporary(facts)

    def _all_reduce(self, facts: Mapping[str, Answer], plan: Plan | None, free: bool) -> None:
        processes = sum(self._slots.values())
        if processes < 2:
            self.rows.append(Row("all-reduce", "SKIP", "there is one process"))
            return
        hosts = [host for host in self._there if host in facts]
        if not free or len(hosts) < len(self._hosts.names):
            self.rows.append(
                Row(
                    "all-reduce",
                    "SKIP",
                    "all hosts, the port and the connections have to be there first",
                )
            )
            return
        port = self._request.port
        if self._request.launched:  # the port is in use: by the processes that ask this
            answer = self._ask({hosts[0]: {"ask": "listen", "port": 0}})
            self._ask({hosts[0]: {"ask": "hush"}})
            port = answer[hosts[0]]["port"]
        common = {
            "ask": "all_reduce",
            "world_size": processes,
            "address": self._address(facts, hosts[0]),
            "port": port,
            "accelerator": facts[hosts[0]]["accelerator"]["name"],
        }
        questions = {}
        for host, start in zip(hosts, _starts(self._slots[h] for h in hosts), strict=True):
            questions[host] = common | {"first_rank": start, "slots": self._slots[host]}
        parameters = None if plan is None else plan.parameters
        rows = network_checks.check_all_reduce(self._ask(questions), processes, parameters)
        if rows and all(row.status == "OK" for row in rows) and hosts == self._there:
            self.rows = network_checks.soften_names(self.rows)
        self.rows += rows


def _starts(counts: Iterable[int]) -> list[int]:
    starts, total = [], 0
    for count in counts:
        starts.append(total)
        total += count
    return starts


def _silent(host: str, reason: str) -> Row:
    """Return the row of a host that did not answer, with what usually helps."""
    remedy = "look at the host; --timeout gives it longer"
    for sign, text in (
        ("Permission denied", "put this user's key into authorized_keys there (ssh-copy-id)"),
        ("Host key verification", "accept its key once: ssh in by hand, or ssh-keyscan"),
        ("Could not resolve", "correct its name in the hostfile, or /etc/hosts"),
        ("Connection refused", "start its sshd, or correct its port in ~/.ssh/config"),
        ("No route to host", "look at the host and its network"),
        ("timed out", "look at the host and its network"),
        ("No module named", "install the same environment at the same path there"),
        ("No such file", "install the same environment at the same path there"),
        ("not found", "install the same environment at the same path there"),
    ):
        if sign in reason:
            remedy = text
            break
    return Row("host", "FAIL", reason, remedy, (host,))
