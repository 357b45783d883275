import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from lert_ds.doctor.hosts import Answer, Question
from lert_ds.doctor.meeting import Meeting, compare_clocks

Facts = dict[str, dict[str, Any]]


@pytest.fixture
def facts(hosts: Callable[..., Facts]) -> Facts:
    """Three hosts whose names lead to a network that only they are on."""
    made = hosts("a", "b", "c")
    for number, each in enumerate(made.values(), 1):
        each["environment"] = {}
        each["network"] = {
            "hostname": "host",
            "resolves_to": [f"10.0.0.{number}"],
            "interfaces": {"docker0": {"up": True, "addresses": [f"172.17.0.{number}"]}},
        }
    return made


class Asked:
    """Answers as healthy hosts do, and keeps what was asked."""

    def __init__(self, refuse: str | None = None) -> None:
        self.refuse, self.questions = refuse, list[tuple[str, Question]]()

    def __call__(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        self.questions += questions.items()
        return {host: self._answer(host, question) for host, question in questions.items()}

    def _answer(self, host: str, question: Question) -> Answer:
        kind = question["ask"]
        if kind == "listen":
            return {"port": question["port"] or 4000 + ord(host)}
        if kind == "connect":
            return {"failures": [
                "no answer" if address == self.refuse else None for address, _ in question["to"]
            ]}  # fmt: skip
        return {"said": [{"backend": "gloo", "bytes": 1, "seconds": 1.0,
                          "bus_bytes_per_second": 1.0}]}  # fmt: skip


def _of(asked: Asked, kind: str) -> dict[str, Question]:
    return {host: question for host, question in asked.questions if question["ask"] == kind}


def test_every_host_connects_to_every_address_of_the_others(facts: Facts) -> None:
    asked = Asked()
    rows, clear = Meeting(asked, facts, dict.fromkeys(facts, 1), None, 29500).try_ways()
    assert clear
    assert [row.status for row in rows] == ["OK", "OK"]
    to_first = {("172.17.0.1", 29500), ("10.0.0.1", 29500)}  # MASTER_ADDR, and what gloo binds to
    assert {tuple(end) for end in _of(asked, "connect")["b"]["to"]} == {
        *to_first,
        ("10.0.0.3", 4099),
    }
    assert {tuple(end) for end in _of(asked, "connect")["a"]["to"]} == {
        ("10.0.0.2", 4098),
        ("10.0.0.3", 4099),
    }
    assert set(_of(asked, "hush")) == set(facts)


def test_a_master_address_that_the_others_do_not_reach_is_found(facts: Facts) -> None:
    slots = dict.fromkeys(facts, 1)
    rows, clear = Meeting(Asked("172.17.0.1"), facts, slots, None, 29500).try_ways()
    assert not clear
    assert {row.hosts for row in rows if row.status == "FAIL"} == {("b",), ("c",)}
    assert "--master_addr" in rows[-1].remedy
    rows, clear = Meeting(Asked("172.17.0.1"), facts, slots, "10.0.0.1", 29500).try_ways()
    assert clear


def test_ranks_are_dealt_in_the_order_of_hosts(facts: Facts) -> None:
    asked = Asked()
    meeting = Meeting(asked, facts, {"a": 2, "b": 3, "c": 1}, "10.0.0.1", 29500)
    (row,) = meeting.all_reduce(None)
    assert row.status == "OK"
    ranks = {host: (q["first_rank"], q["slots"]) for host, q in _of(asked, "all_reduce").items()}
    assert ranks == {"a": (0, 2), "b": (2, 3), "c": (5, 1)}
    (question, *_) = _of(asked, "all_reduce").values()
    assert (question["world_size"], question["address"], question["port"]) == (6, "10.0.0.1", 29500)


def test_where_the_processes_have_met_another_port_is_taken(facts: Facts) -> None:
    asked = Asked()
    meeting = Meeting(asked, facts, dict.fromkeys(facts, 1), "10.0.0.1", 0)
    rows, clear = meeting.try_ways()
    assert clear
    assert [row.check for row in rows] == ["connections"]
    meeting.all_reduce(None)
    assert _of(asked, "all_reduce")["a"]["port"] == 4000 + ord("a")


def test_half_of_the_round_trip_is_taken_off() -> None:
    ahead = {"a": 0.0, "b": 50.0}

    def ask(questions: Mapping[str, Question]) -> dict[str, Answer]:
        (host,) = questions
        way = {"a": 0.02, "b": 0.3}[host]
        time.sleep(way)
        told = time.time() + ahead[host]
        time.sleep(way)
        return {host: {"seconds": told}}

    skews = compare_clocks(ask, ["a", "b"])
    assert skews["a"][0] == 0
    assert skews["b"][0] == pytest.approx(50, abs=0.1)
    assert 0.3 <= skews["b"][1] < 1
