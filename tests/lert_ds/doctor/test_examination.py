"""The course of an examination, with hosts that answer from a table."""

from collections.abc import Callable, Mapping
from typing import Any

from lert_ds.doctor.examination import Examination, Request
from lert_ds.doctor.hosts import Answer, Question, SilenceError
from lert_ds.doctor.plan import Plan
from lert_ds.doctor.row import Row
from lert_ds.errors import ConfigError

Facts = dict[str, dict[str, Any]]
GOOD = {"backend": "gloo", "bytes": 2**24, "seconds": 0.01, "bus_bytes_per_second": 1e9}


class TableHosts:
    """Hosts whose answers are given by what is asked; `wrong` has those that differ."""

    def __init__(self, facts: Facts, wrong: Mapping[tuple[str, str], Any] | None = None) -> None:
        self.names, self.slots = list(facts), [1] * len(facts)
        self._facts, self._wrong = facts, wrong or {}
        self.asked: list[tuple[str, str]] = []

    def ask(
        self, questions: Mapping[str, Question], seconds: float
    ) -> dict[str, Answer | SilenceError]:
        return {host: self._answer(host, question) for host, question in questions.items()}

    def _answer(self, host: str, question: Question) -> Answer | SilenceError:
        kind = question["ask"]
        self.asked.append((host, kind))
        if (host, kind) in self._wrong:
            answer: Answer | SilenceError = self._wrong[host, kind]
            return answer
        answers: dict[str, Callable[[], Answer]] = {
            "time": lambda: {"seconds": __import__("time").time()},
            "facts": lambda: self._facts[host],
            "listen": lambda: {"port": 4000},
            "connect": lambda: {"failures": [None] * len(question["to"])},
            "hush": dict,
            "all_reduce": lambda: {"said": [GOOD]},
        }
        return answers[kind]()

    def close(self) -> None:
        """Nothing is open."""


def _examine(hosts: TableHosts, facts: Facts, **changes: Any) -> list[Row]:
    folder = next(iter(facts.values()))["folder"]
    given: dict[str, Any] = {"port": 29500, "address": None, "plan": None, "seconds": 5.0}
    return Examination(hosts, Request(folder=folder, **(given | changes))).run()


def _two(hosts: Callable[..., Facts]) -> Facts:
    facts = hosts("a", "b")
    for number, each in enumerate(facts.values()):
        each["network"]["resolves_to"] = [f"10.0.0.{number}"]
        each["environment"] = {}
    return facts


def _failed(rows: list[Row]) -> list[tuple[str, tuple[str, ...]]]:
    failed = [(row.check, row.hosts) for row in rows if row.status == "FAIL"]
    return list(dict.fromkeys(failed))


def test_healthy_hosts_have_no_finding(hosts: Callable[..., Facts]) -> None:
    facts = _two(hosts)
    rows = _examine(TableHosts(facts), facts)
    assert not _failed(rows)
    checks = {row.check for row in rows}
    assert {"versions", "clock", "port", "connections", "all-reduce"} <= checks
    assert "disk" not in checks
    (left_out,) = [row for row in rows if row.check == "configuration"]
    assert left_out.status == "SKIP"
    assert "not looked at" in left_out.found


def test_a_silent_host_is_told_once_and_the_rest_goes_on(hosts: Callable[..., Facts]) -> None:
    facts = _two(hosts)
    silence = SilenceError("did not answer (facts) within 5 s")
    table = TableHosts(facts, {("b", "facts"): silence})
    rows = _examine(table, facts)
    assert _failed(rows) == [("host", ("b",))]
    assert ("b", "listen") not in table.asked
    assert [row.hosts for row in rows if row.check == "versions"] == [("a",)]
    assert [row.status for row in rows if row.check == "all-reduce"] == ["SKIP"]


def test_a_clock_that_is_off_is_found(hosts: Callable[..., Facts]) -> None:
    facts = _two(hosts)
    late = {"seconds": __import__("time").time() - 100}
    assert _failed(_examine(TableHosts(facts, {("b", "time"): late}), facts)) == [("clock", ("b",))]
    # Measured from the first host's clock, wherever the command runs.
    both = {("a", "time"): late, ("b", "time"): late}
    assert not _failed(_examine(TableHosts(facts, both), facts))


def test_without_a_port_or_a_way_no_all_reduce_is_tried(hosts: Callable[..., Facts]) -> None:
    facts = _two(hosts)
    for wrong, found in (
        ({("a", "listen"): {"refused": "Address already in use"}}, ("port", ("a",))),
        ({("b", "connect"): {"failures": ["no answer within 5 s"] * 2}}, ("connections", ("b",))),
    ):
        table = TableHosts(facts, wrong)
        assert _failed(_examine(table, facts)) == [found]
        assert not any(kind == "all_reduce" for _, kind in table.asked)
        assert table.asked.count(("a", "hush")) == 1  # no port stays open


def test_a_configuration_that_does_not_hold_leaves_the_rest_to_be_checked(
    hosts: Callable[..., Facts],
) -> None:
    facts = _two(hosts)

    def plan() -> Plan:
        raise ConfigError("zero.json: unknown key zero_optimisation")

    rows = _examine(TableHosts(facts), facts, plan=plan)
    assert _failed(rows) == [("configuration", ())]
    assert rows[0].found == "zero.json: unknown key zero_optimisation"


def test_a_hostname_of_loopback_is_a_warning_where_the_all_reduce_worked(
    hosts: Callable[..., Facts],
) -> None:
    facts = _two(hosts)
    facts["b"]["network"]["resolves_to"] = ["127.0.1.1"]
    facts["b"]["network"]["interfaces"]["eth0"] = {"up": True, "addresses": ["10.0.0.2"]}
    assert not _failed(_examine(TableHosts(facts), facts))
    wrong = {("b", "all_reduce"): {"said": [{"problem": "Connection refused"}]}}
    assert _failed(_examine(TableHosts(facts, wrong), facts)) == [
        ("hostname", ("b",)),
        ("all-reduce", ("b",)),
    ]


def test_under_a_launcher_the_port_is_not_tried(hosts: Callable[..., Facts]) -> None:
    facts = _two(hosts)
    rows = _examine(TableHosts(facts), facts, launched=True, address="10.0.0.1")
    (port,) = [row for row in rows if row.check == "port"]
    assert port.found == "the processes met at port 29500"
    assert not _failed(rows)
