"""The examination: what is asked of the hosts, in which order, and the rows that come of it.

    time, facts, plan → software → ports and ways → output, corpus → memory → all-reduce

What depends on something that failed is left out, and a row says so.
"""

from collections.abc import Callable, Mapping
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
from lert_ds.doctor.meeting import Meeting, compare_clocks
from lert_ds.doctor.plan import Plan
from lert_ds.doctor.row import Row
from lert_ds.errors import ConfigError
from lert_ds.train import deepspeed_config


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
            self._ask_all({"ask": "time"})  # the first answer waits for the host to start
            skews = compare_clocks(self._ask, list(self._there))
            facts = self._ask_all({"ask": "facts"})
            plan = self._plan_rows(planned)
        if facts:
            self._software(facts, plan, skews)
            port = 0 if self._request.launched else self._request.port
            meeting = Meeting(self._ask, facts, self._slots, self._request.address, port)
            if self._request.launched:
                met = f"the processes met at port {self._request.port}"
                self.rows.append(Row("port", "OK", met, hosts=(next(iter(facts)),)))
            rows, free = meeting.try_ways()
            self.rows += rows
            shards = self._storage(plan)
            self._memory(facts, plan, shards)
            self._all_reduce(meeting, plan, free)
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

    def _all_reduce(self, meeting: Meeting, plan: Plan | None, free: bool) -> None:
        if sum(self._slots.values()) < 2:
            self.rows.append(Row("all-reduce", "SKIP", "there is one process"))
            return
        if not free or len(self._there) < len(self._hosts.names):
            missing = "all hosts, the port and the connections have to be there first"
            self.rows.append(Row("all-reduce", "SKIP", missing))
            return
        rows = meeting.all_reduce(None if plan is None else plan.parameters)
        if any(row.status == "OK" for row in rows):
            self.rows = network_checks.soften_names(self.rows)
        self.rows += rows


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
