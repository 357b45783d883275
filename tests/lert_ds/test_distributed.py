"""Ranks from the environment, and sums over two real processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from lert_ds import distributed

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_there_is_one_process(alone: pytest.MonkeyPatch) -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.local_world_size() == 1
    assert distributed.is_main()
    distributed.barrier()  # waits for nobody
    tensor = torch.tensor([2.0])
    assert distributed.sum_over_ranks(tensor) is tensor


def test_ranks_come_from_the_environment(alone: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        alone.setenv(name, value)
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (5, 8, 1)
    assert not distributed.is_main()
    assert distributed.local_world_size() == 8  # the launcher did not say: one host
    alone.setenv("LOCAL_SIZE", "4")  # DeepSpeed's name
    assert distributed.local_world_size() == 4
    alone.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's
    assert distributed.local_world_size() == 2


PROGRAM = """
import json, torch
from lert_ds import distributed

torch.distributed.init_process_group("gloo")
mine = torch.tensor([1.0 + distributed.rank(), 10.0])
total = distributed.sum_over_ranks(mine)
distributed.barrier()
print(json.dumps([total.tolist(), mine.tolist()]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_get_the_same_sums_and_keep_their_own() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [json.loads(output) for output in outputs] == [
        [[3.0, 20.0], [1.0, 10.0]],
        [[3.0, 20.0], [2.0, 10.0]],
    ]
