from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds.doctor import storage_checks as checks
from lert_ds.doctor.folders import output_facts
from lert_ds.doctor.plan import Plan

MakePlan = Callable[..., Plan]


def _of(rows: list[Any], check: str) -> Any:
    (row,) = [row for row in rows if row.check == check]
    return row


def test_what_checkpoints_take(make_plan: MakePlan) -> None:
    assert checks.checkpoint_bytes(make_plan(parameters=1000)) == (2 + 2) * 16 * 1000
    assert checks.checkpoint_bytes(make_plan({"keep_every": 50})) == (2 + 2 + 2) * 16 * 1000
    assert checks.checkpoint_bytes(make_plan({"save_every": 0}, parameters=1000)) == 4 * 1000


def test_a_disk_that_is_too_small_is_found(make_plan: MakePlan, tmp_path: Path) -> None:
    told = output_facts(str(tmp_path / "run"))
    assert _of(checks.check_output({"a": told}, make_plan()), "disk").status == "OK"
    # More than any disk: a hundred thousand checkpoints of a large model.
    plan = make_plan({"keep_checkpoints": 100_000}, parameters=10**12)
    row = _of(checks.check_output({"a": told}, plan), "disk")
    assert row.status == "FAIL"
    assert "train.keep_checkpoints" in row.remedy


def test_checkpoints_that_are_there_already_take_no_more(make_plan: MakePlan) -> None:
    told = {"path": "run", "place": "run", "finished": False, "checkpoint_bytes": 60_000,
            "is_file": False, "free_bytes": 4000, "refused": None}  # fmt: skip
    assert _of(checks.check_output({"a": told}, make_plan()), "disk").status == "OK"
    told["free_bytes"] = 3999
    assert _of(checks.check_output({"a": told}, make_plan()), "disk").status == "FAIL"


def test_outputs_that_cannot_be_written(make_plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    (tmp_path / "done" / "model").mkdir(parents=True)
    (tmp_path / "done" / "model" / "config.json").write_text("{}", "utf-8")
    for path, told in (
        ("/proc/run", "/proc cannot be written"),
        (tmp_path / "file" / "run", "is a file"),
        (tmp_path / "done", "holds a finished result"),
    ):
        row = _of(checks.check_output({"a": output_facts(str(path))}, make_plan()), "output")
        assert row.status == "FAIL"
        assert told in row.found


def test_either_kind_of_output_is_fine() -> None:
    (row,) = checks.check_shared({"b": True, "c": True}, "a", "run")
    assert (row.status, row.hosts) == ("OK", ("a", "b", "c"))
    (row,) = checks.check_shared({"b": True, "c": False}, "a", "run")
    assert (row.status, row.hosts) == ("OK", ("c",))
    assert "node-local" in row.found


def test_files_that_a_host_lacks_are_named_by_their_key() -> None:
    paths = {"zero.json": "deepspeed"}
    rows = checks.check_files({"a": {"missing": []}, "b": {"missing": ["zero.json"]}}, paths)
    assert [row.status for row in rows] == ["OK", "FAIL"]
    assert rows[1].found == "deepspeed = zero.json is not there"


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({}, "OK", "64 instances, 2 shards"),
        ({"manifest": "b" * 64}, "FAIL", "manifest bbbbbbbbbbbb, on a aaaaaaaaaaaa"),
        ({"verified": 1}, "WARN", "only 1 of 2 shards"),
        ({"wrong": "shards/x.npy: its content is not"}, "FAIL", "shards/x.npy"),
    ],
)
def test_corpora(change: dict[str, Any], status: str, told: str) -> None:
    good = {"manifest": "a" * 64, "instances": 64, "shards": 2, "verified": 2}
    first, second = checks.check_corpus({"a": good, "b": good | change}, "wiki")
    assert (first.status, second.status) == ("OK", status)
    assert told in second.found


def test_temporary_files(tmp_path: Path) -> None:
    good = {"path": "t", "named": None, "free_bytes": 2**40, "refused": None}
    for change, status in (
        ({}, "OK"),
        ({"named": "other"}, "WARN"),
        ({"free_bytes": 2**20}, "WARN"),
        ({"refused": "No space left on device"}, "FAIL"),
    ):
        (row,) = checks.check_temporary({"a": {"temporary": good | change}})
        assert row.status == status
