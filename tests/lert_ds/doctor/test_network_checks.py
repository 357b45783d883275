from collections.abc import Callable
from typing import Any

import pytest

from lert_ds.doctor import network_checks as checks

Hosts = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def pair(hosts: Hosts) -> dict[str, dict[str, Any]]:
    """Two hosts with addresses of their own."""
    facts = hosts("a", "b")
    for number, (host, each) in enumerate(facts.items(), 1):
        address = f"10.0.0.{number}"
        up = {"up": True, "addresses": [address, f"fd00::{number}"]}
        lo = {"up": True, "addresses": ["127.0.0.1"]}
        down = {"up": False, "addresses": []}
        each["network"] = {"hostname": host, "resolves_to": [address],
                           "interfaces": {"lo": lo, "eth0": up, "ib0": down}}  # fmt: skip
        each["environment"] = {}
    return facts


@pytest.mark.parametrize(
    ("skew", "status"),
    [(0.9, "OK"), (-0.9, "OK"), (1.1, "WARN"), (-29.0, "WARN"), (31.0, "FAIL"), (-3600.0, "FAIL")],
)
def test_clocks(skew: float, status: str) -> None:
    rows = checks.check_clocks({"a": (0.0, 0.0), "b": (skew, 0.01)})
    assert [row.status for row in rows] == ["OK", status]
    if status != "OK":
        assert ("behind" if skew < 0 else "ahead") in rows[1].found


def test_a_hostname_of_loopback_is_found(pair: dict[str, dict[str, Any]]) -> None:
    assert {row.status for row in checks.check_names(pair)} == {"OK"}
    pair["b"]["network"]["resolves_to"] = ["127.0.1.1"]
    first, second = checks.check_names(pair)
    assert (first.status, second.status) == ("OK", "FAIL")
    assert "127.0.1.1" in second.found
    pair["b"]["network"]["resolves_to"] = []
    assert checks.check_names(pair)[1].found == "b resolves to nothing"
    pair["b"]["environment"]["GLOO_SOCKET_IFNAME"] = "eth0"
    assert checks.check_names(pair)[1].status == "OK"


def test_an_all_reduce_that_worked_makes_a_hostname_a_warning(
    pair: dict[str, dict[str, Any]],
) -> None:
    pair["b"]["network"]["resolves_to"] = ["127.0.1.1"]
    rows = [*checks.check_names(pair), checks.check_port(1, "in use", "a")]
    assert [row.status for row in checks.soften_names(rows)] == ["OK", "WARN", "FAIL"]


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("GLOO_SOCKET_IFNAME", "eth0", "OK"),
        ("GLOO_SOCKET_IFNAME", "eth7", "FAIL"),
        ("GLOO_SOCKET_IFNAME", "ib0", "FAIL"),
        ("GLOO_SOCKET_IFNAME", "eth", "FAIL"),
        ("NCCL_SOCKET_IFNAME", "eth", "OK"),
        ("NCCL_SOCKET_IFNAME", "ib,eth", "OK"),
        ("NCCL_SOCKET_IFNAME", "=eth", "FAIL"),
        ("NCCL_SOCKET_IFNAME", "=eth0", "OK"),
        ("NCCL_SOCKET_IFNAME", "^lo", "OK"),
        ("NCCL_SOCKET_IFNAME", "ens", "FAIL"),
    ],
)
def test_interfaces(
    variable: str, value: str, status: str, pair: dict[str, dict[str, Any]]
) -> None:
    assert checks.check_interfaces(pair) == []
    pair["a"]["environment"][variable] = value
    (row,) = checks.check_interfaces(pair)
    assert row.status == status
    if status == "FAIL":
        assert row.remedy.endswith("eth0, lo")


def test_the_address_that_others_are_to_reach(pair: dict[str, dict[str, Any]]) -> None:
    assert checks.address_of(pair["b"]) == "10.0.0.2"
    pair["b"]["network"]["resolves_to"] = ["127.0.1.1"]
    assert checks.address_of(pair["b"]) == "10.0.0.2"  # as the launcher has it
    pair["b"]["environment"]["GLOO_SOCKET_IFNAME"] = "lo"
    assert checks.address_of(pair["b"]) == "127.0.0.1"
    pair["b"]["environment"]["GLOO_SOCKET_IFNAME"] = "eth7"
    assert checks.address_of(pair["b"]) is None


def test_ways_between_hosts() -> None:
    there = checks.Way("a", "b", "10.0.0.2", 2, None)
    back = checks.Way("b", "a", "10.0.0.1", 1, None)
    (row,) = checks.check_ways([there, back])
    assert (row.status, row.hosts) == ("OK", ("a", "b"))
    (row,) = checks.check_ways([there._replace(failure="no answer within 5 s"), back])
    assert (row.status, row.hosts) == ("FAIL", ("a",))
    assert "no way to b at 10.0.0.2, port 2: no answer within 5 s" in row.found
    assert checks.check_ways([]) == []


def test_ports() -> None:
    assert checks.check_port(29500, None, "a").status == "OK"
    row = checks.check_port(29500, "Address already in use, by python (process 7)", "a")
    assert row.status == "FAIL"
    assert "--master_port" in row.remedy


def test_all_reduces() -> None:
    good = {"backend": "gloo", "bytes": 2**24, "seconds": 0.016, "bus_bytes_per_second": 1e9}
    (row,) = checks.check_all_reduce({"a": {"said": [good]}, "b": {"said": [good]}}, 2, 10**9)
    assert row.status == "OK"
    assert "1.00 GB/s" in row.found
    assert "in bf16 take 2 s" in row.found  # 2 bytes a parameter, over a way of 1 GB/s
    answers = {"a": {"said": [good]}, "b": {"said": [{"problem": "no way"}, good]}}
    (row,) = checks.check_all_reduce(answers, 2, None)
    assert (row.status, row.hosts, row.found) == ("FAIL", ("b",), "no way")
    assert checks.check_all_reduce({}, 2, None) == []
