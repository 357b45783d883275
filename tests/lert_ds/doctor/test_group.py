"""Hosts that are asked through a launcher's store: processes of this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

MAIN = """
import json, sys, time
from lert_ds.doctor import group, serve
serve.ANSWERS["hang"] = lambda question: time.sleep(600)
serve.ANSWERS["who"] = lambda question: {"rank": group.distributed.rank()}
store = group.meet(60)
if group.distributed.rank():
    sys.exit(group.wait_and_answer(store))
hosts = group.GroupHosts(store, float(sys.argv[1]))
told = {"names": hosts.names, "slots": hosts.slots, "absent": hosts.absent}
for kind in sys.argv[2:]:
    asked = {name: {"ask": kind if kind != "hang" or name == hosts.names[-1] else "who"}
             for name in hosts.names}
    told[kind] = {name: answer if isinstance(answer, dict) else str(answer)
                  for name, answer in hosts.ask(asked, 30 if kind == "who" else 2).items()}
print(json.dumps(told), flush=True)
hosts.close(3)
import os; os._exit(3)
"""


@pytest.fixture
def environment() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_SIZE": "2"}
    return {**os.environ, **names}


def _start(
    rank: int, local: int, world: int, environment: dict[str, str], *words: str
) -> "subprocess.Popen[str]":
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(world)}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words], cwd=ROOT, env=environment | ranks, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_first_process_of_each_host_answers_and_all_leave_with_one_code(
    environment: dict[str, str],
) -> None:
    # Two hosts of two processes; they have one name here, and are told apart by the rank.
    processes = [_start(rank, rank % 2, 4, environment, "60", "who") for rank in range(4)]
    told = json.loads(processes[0].communicate(timeout=120)[0])
    name = socket.gethostname()
    assert told["names"] == [name, f"{name} (rank 2)"]
    assert told["slots"] == [2, 2]
    assert told["absent"] == []
    assert told["who"] == {name: {"rank": 0}, f"{name} (rank 2)": {"rank": 2}}
    assert [process.wait(60) for process in processes] == [3, 3, 3, 3]


def test_who_does_not_come_or_does_not_answer_is_named_in_time(
    environment: dict[str, str],
) -> None:
    processes = [_start(rank, 0, 3, environment, "15", "hang") for rank in range(2)]
    told = json.loads(processes[0].communicate(timeout=120)[0])
    processes[1].kill()
    processes[1].communicate()
    name = socket.gethostname()
    assert told["absent"] == [2]
    assert told["hang"][name] == {"rank": 0}
    assert told["hang"][f"{name} (rank 1)"] == "did not answer (hang) within 2 s"
