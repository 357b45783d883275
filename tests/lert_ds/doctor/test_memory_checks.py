from collections.abc import Callable
from typing import Any

import pytest

from lert_ds.doctor import memory_checks as checks
from lert_ds.doctor.plan import Plan

Hosts = Callable[..., dict[str, dict[str, Any]]]
MakePlan = Callable[..., Plan]
GIB = 2**30


@pytest.mark.parametrize(
    ("gib_each", "available", "left", "swap", "status"),
    [
        (4, 20, None, 0, "OK"),
        (4, 20, 6, 0, "FAIL"),  # the control group ends it, whatever is free
        (4, 20, 6, 64, "FAIL"),
        (9, 20, None, 0, "WARN"),  # an estimate, and tight
        (10, 20, None, 0, "FAIL"),
        (10, 20, None, 64, "WARN"),  # it would swap
    ],
)
def test_the_memory_of_a_hosts_processes(
    gib_each: int,
    available: int,
    left: int | None,
    swap: int,
    status: str,
    hosts: Hosts,
    make_plan: MakePlan,
) -> None:
    facts = hosts("a")
    facts["a"]["memory"].update(
        available_bytes=available * GIB,
        group_left_bytes=None if left is None else left * GIB,
        swap_free_bytes=swap * GIB,
    )
    (row,) = checks.check_memory(facts, {"a": 2}, make_plan(device_bytes=gib_each * GIB))
    assert row.status == status
    assert ("control group" in row.found) == (left is not None)


def test_the_copy_of_a_checkpoint_counts(hosts: Hosts, make_plan: MakePlan) -> None:
    facts = hosts("a")
    facts["a"]["memory"].update(available_bytes=20 * GIB, group_left_bytes=None, swap_free_bytes=0)
    numbers = {"device_bytes": 4 * GIB, "parameters": 10**9}  # 12 bytes each, over 2 processes
    (row,) = checks.check_memory(facts, {"a": 2}, make_plan(**numbers))
    assert row.status == "OK"
    (row,) = checks.check_memory(
        facts, {"a": 2}, make_plan({"save_in_background": True}, **numbers)
    )
    assert row.status == "WARN"


def test_a_model_that_this_machine_cannot_hold(hosts: Hosts, make_plan: MakePlan) -> None:
    facts = hosts("a")
    much = 10.0 * facts["a"]["memory"]["total_bytes"]
    (row,) = checks.check_memory(facts, {"a": 1}, make_plan(device_bytes=much))
    assert row.status == "FAIL"
    assert "micro_batch_size" in row.remedy


def test_devices_are_judged_one_by_one_and_offload_by_the_host(
    hosts: Hosts, make_plan: MakePlan
) -> None:
    facts = hosts("a")
    devices = [{"name": "H100", "free_bytes": free * GIB} for free in (70, 10, 1)]
    facts["a"]["accelerator"].update(name="cuda", devices=devices)
    facts["a"]["memory"].update(available_bytes=60 * GIB, group_left_bytes=None, swap_free_bytes=0)
    plan = make_plan(device_bytes=20 * GIB, host_bytes=30 * GIB)
    rows = checks.check_memory(facts, {"a": 2}, plan)  # the third is not used
    assert [row.check for row in rows] == ["device memory", "device memory", "memory"]
    assert [row.status for row in rows] == ["OK", "FAIL", "FAIL"]


def test_shared_memory_of_a_container(hosts: Hosts) -> None:
    facts = hosts("a")
    memory = facts["a"]["memory"]
    memory["shared_free_bytes"] = 64 * 2**20  # docker's default
    (row,) = checks.check_shared_memory(facts, {"a": 2})
    assert row.status == "FAIL"
    assert "132 MiB" in row.found
    assert checks.check_shared_memory(facts, {"a": 1})[0].status == "WARN"
    memory["shared_free_bytes"] = GIB
    assert checks.check_shared_memory(facts, {"a": 2})[0].status == "OK"


@pytest.mark.parametrize(
    ("change", "shards", "status", "told"),
    [
        ({}, 4, "OK", ""),
        ({"open_files": [1024, 4096]}, 4, "OK", ""),  # the trainer raises the soft one itself
        ({"open_files": [1024, 4096]}, 1000, "FAIL", "4096 open files allowed, 6024 needed"),
        ({"address_space": [GIB, GIB]}, None, "WARN", "ulimit -v"),
        ({"processes": [100, 100]}, None, "WARN", "ulimit -u"),
        ({"infiniband": True, "locked_memory": [65536, None]}, None, "WARN", "locked memory"),
    ],
)
def test_limits(
    change: dict[str, Any], shards: int | None, status: str, told: str, hosts: Hosts
) -> None:
    facts = hosts("a")
    free = {name: [None, None] for name in
            ("open_files", "address_space", "processes", "locked_memory")}  # fmt: skip
    facts["a"]["limits"] = free | {"infiniband": False} | change
    (row,) = checks.check_limits(facts, shards)
    assert row.status == status
    assert told in row.found
