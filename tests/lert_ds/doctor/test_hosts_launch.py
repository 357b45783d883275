"""The doctor over two hosts with a real network, ssh and pdsh (tests/launch/cluster.py)."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.launch, pytest.mark.slow]

HANDED_OVER = {
    "PATH": os.environ["PATH"],
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_API_KEY": "verysecret",
}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def hosts(cluster: Any, folder: Path) -> Iterator[Any]:
    (folder / "own").mkdir()
    with cluster(folder / "hosts", 2, handed_over=HANDED_OVER, private=[folder / "own"]) as up:
        yield up


@pytest.fixture
def ask(hosts: Any) -> Callable[..., tuple[int, dict[str, list[dict[str, Any]]]]]:
    """Arguments → the exit code and the rows by check, as called on node0."""

    def call(*words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        environment = {name: "" for name in HANDED_OVER if name not in os.environ}
        done = hosts.run(
            [sys.executable, "-m", "lert_ds", "doctor", *words, "--json",
             "--hostfile", str(hosts.hostfile)],
            folder=ROOT, environment=environment | {"DS_ACCELERATOR": "cpu"},
        )  # fmt: skip
        assert "verysecret" not in done.stdout
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(done.stdout):
            rows.setdefault(row["check"], []).append(row)
        return done.returncode, rows

    return call


def test_two_healthy_hosts_with_an_output_of_their_own(
    ask: Callable[..., Any], folder: Path, tiny_corpus: Path
) -> None:
    code, rows = ask(
        "pretrain-quickstart", f"corpus={tiny_corpus}", f"output={folder / 'own' / 'run'}"
    )
    failed = [row for some in rows.values() for row in some if row["status"] == "FAIL"]
    assert not [row for row in failed if row["check"] != "ops"]  # a compiler is another matter
    assert code == bool(failed)
    (row,) = rows["shared output"]
    assert "node-local" in row["found"]
    assert row["hosts"] == ["node1"]
    (row,) = rows["all-reduce"]
    assert "2 processes, gloo" in row["found"]
    assert row["hosts"] == ["node0", "node1"]
    assert {row["found"] for row in rows["hostname"]} == {
        "node0 is 10.77.0.1",
        "node1 is 10.77.0.2",
    }


def test_a_firewall_that_lets_ssh_alone_through_is_found(
    ask: Callable[..., Any], hosts: Any
) -> None:
    rule = ["-p", "tcp", "--syn", "!", "--dport", "22", "-j", "DROP"]
    assert hosts.run(["iptables", "-A", "INPUT", *rule], 1).returncode == 0
    try:
        code, rows = ask()
    finally:
        hosts.run(["iptables", "-D", "INPUT", *rule], 1)
    assert code == 1
    (row,) = rows["connections"]
    assert (row["status"], row["hosts"]) == ("FAIL", ["node0"])
    assert "no way to node1 at 10.77.0.2" in row["found"]
    assert rows["all-reduce"][0]["status"] == "SKIP"


def test_a_cut_link_is_told_in_bounded_time(ask: Callable[..., Any], hosts: Any) -> None:
    hosts.link(1, up=False)
    started = time.monotonic()
    try:
        code, rows = ask()
    finally:
        hosts.link(1, up=True)
    assert time.monotonic() - started < 60
    assert code == 1
    (row,) = rows["host"]
    assert row["hosts"] == ["node1"]
    assert "ssh: connect to host node1 port 22" in row["found"]
