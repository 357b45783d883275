from collections.abc import Callable
from typing import Any

import pytest

from lert_ds.doctor import software_checks as checks
from lert_ds.doctor.plan import Plan
from lert_ds.doctor.row import Row, fold

Hosts = Callable[..., dict[str, dict[str, Any]]]
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def _one(rows: list[Row], host: str) -> Row:
    (row,) = [row for row in rows if host in row.hosts]
    return row


def test_equal_hosts_are_one_row(hosts: Hosts) -> None:
    facts = hosts("a", "b")
    slots = {"a": 1, "b": 1}
    for rows in (
        checks.check_versions(facts),
        checks.check_folder(facts, facts["a"]["folder"]),
        checks.check_accelerator(facts, slots),
        checks.check_ops(facts, None),
        checks.check_environment(facts),
    ):
        (row,) = fold(rows)
        assert row.status == "OK"
        assert row.hosts == ("a", "b")


def test_the_host_with_other_versions_is_the_one_that_is_named(hosts: Hosts) -> None:
    facts = hosts("a", "b", "c")
    facts["a"]["versions"]["torch"] = "2.9.0"
    usual = facts["b"]["versions"]["torch"]
    rows = checks.check_versions(facts)
    assert _one(rows, "a").status == "FAIL"
    assert _one(rows, "a").found == f"torch 2.9.0 (elsewhere {usual})"
    assert _one(rows, "b").status == _one(rows, "c").status == "OK"
    del facts["a"]["versions"]["torch"], facts["b"]["versions"]["commit"]
    facts["c"]["versions"]["deepspeed"] = "missing"
    rows = checks.check_versions(facts)
    assert [row.status for row in rows] == ["FAIL", "FAIL", "FAIL"]
    assert "deepspeed not installed" in rows[2].found


def test_a_host_without_the_working_folder(hosts: Hosts) -> None:
    facts = hosts("a", "b")
    facts["b"]["folder"] = "/root"
    rows = checks.check_folder(facts, facts["a"]["folder"])
    assert [row.status for row in rows] == ["OK", "FAIL"]


def test_devices_are_at_least_the_slots(hosts: Hosts) -> None:
    facts = hosts("a", "b")
    gpu = {"name": "H100", "free_bytes": 1, "total_bytes": 1}
    for each, count in zip(facts.values(), (8, 6), strict=True):
        each["accelerator"] = {"name": "cuda", "devices": [gpu] * count, "problem": None}
    rows = checks.check_accelerator(facts, {"a": 8, "b": 8})
    assert [row.status for row in rows] == ["OK", "FAIL"]
    assert rows[1].found == "6 × H100, 8 used"
    facts["b"]["accelerator"] = {"name": "cpu", "devices": [], "problem": None}
    assert checks.check_accelerator(facts, {"a": 8, "b": 1})[1].status == "FAIL"
    facts["b"]["accelerator"]["problem"] = "8 devices are there, but torch sees none of them"
    assert "sees none" in checks.check_accelerator(facts, {"a": 8, "b": 8})[1].found


def test_more_processes_than_cores_are_a_warning(hosts: Hosts) -> None:
    facts = hosts("a")
    facts["a"]["processor"]["cores"] = 2
    assert checks.check_accelerator(facts, {"a": 2})[0].status == "OK"
    assert checks.check_accelerator(facts, {"a": 3})[0].status == "WARN"


@pytest.mark.parametrize(
    ("accelerator", "optimizer", "deepspeed", "ops"),
    [
        ("cpu", "adamw", {}, ["deepspeed_shm_comm", "fused_adam"]),
        ("cuda", "adamw", {}, ["fused_adam"]),
        ("cuda", "adamw", OFFLOAD, ["cpu_adam"]),
        ("cuda", "lion", {}, []),
        ("cuda", "lion", OFFLOAD, ["cpu_lion"]),
        ("cuda", "lamb", {}, []),
    ],
)
def test_the_ops_of_a_run(
    accelerator: str,
    optimizer: str,
    deepspeed: dict[str, Any],
    ops: list[str],
    make_plan: Callable[..., Plan],
) -> None:
    assert checks.ops_of(accelerator, make_plan(deepspeed=deepspeed, optimizer=optimizer)) == ops


def _spoil(each: dict[str, Any], fault: str) -> None:
    if fault in ("c++", "ninja"):
        each["tools"][fault] = None
    elif fault == "Python.h":
        each["python_headers"] = False
    elif fault == "cannot be written":
        each["ops"]["refused"] = "Read-only file system"
    elif fault == "killed":
        each["ops"]["locks"] = {"ext/fused_adam/lock": 7200}
    else:
        each["accelerator"]["cuda"] = "13.0"
        each["cuda_compiler"] = None if fault == "no nvcc" else "12.4"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("c++", "no C\\+\\+ compiler"),
        ("ninja", "no ninja"),
        ("Python.h", "no Python.h"),
        ("cannot be written", "cannot be written: Read-only"),
        ("killed", "left by a build that was killed"),
        ("no nvcc", "no nvcc"),
        ("another nvcc", "nvcc is 12.4, torch is for CUDA 13.0"),
    ],
)
def test_what_stops_the_building_of_ops(fault: str, told: str, hosts: Hosts) -> None:
    facts = hosts("a")
    _spoil(facts["a"], fault)
    (row,) = checks.check_ops(facts, None)
    assert row.status == "FAIL"
    assert __import__("re").search(told, row.found)
    assert row.remedy


def test_built_ops_need_ninja_but_no_compiler(hosts: Hosts) -> None:
    facts = hosts("a")
    facts["a"]["ops"]["built"] = dict.fromkeys(facts["a"]["ops"]["built"], "built")
    facts["a"]["tools"]["c++"] = None
    facts["a"]["ops"]["locks"] = {"ext/fused_adam/lock": 5}  # someone builds now
    assert checks.check_ops(facts, None)[0].status == "OK"
    facts["a"]["tools"]["ninja"] = None
    assert checks.check_ops(facts, None)[0].status == "FAIL"
    facts["a"]["ops"]["built"] = dict.fromkeys(facts["a"]["ops"]["built"], "installed")
    assert checks.check_ops(facts, None)[0].found == "no op to build"


def test_variables_and_processors_that_differ_are_warnings(hosts: Hosts) -> None:
    facts = hosts("a", "b")
    facts["a"]["environment"] = {"OMP_NUM_THREADS": "1"}
    facts["b"]["environment"] = {}
    facts["b"]["processor"]["name"] = "another"
    rows = checks.check_environment(facts)
    assert [row.status for row in rows] == ["WARN", "WARN"]
    assert rows[0].found == "OMP_NUM_THREADS: 1 on a, unset on b"
