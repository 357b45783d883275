"""Processes of a group without a launcher: forked from one that has imported torch already.

Importing torch takes each process two seconds; a fork has it at once. Scripts beside this one use
it, and the tests read what it leaves: `NAME-RANK.txt`, what a process printed, and `results.json`.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed

_PR_SET_CHILD_SUBREAPER = 36
LONGEST_SECONDS = 90.0


class Scenario(NamedTuple):
    """Something that some processes do together."""

    name: str
    world: int
    act: Callable[[], None]
    launched: bool = False
    """Between the processes and this one stands a parent, which is killed when each has made its
    file `NAME-RANK.ready`."""


def run(folder: Path, scenarios: list[Scenario]) -> None:
    """Run all scenarios at once and write to `results.json` how each process ended, and when."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to this process
    waiting: dict[int, str] = {}
    started = time.monotonic()
    for scenario in scenarios:
        if not scenario.launched:
            waiting |= _fork_ranks(scenario, folder)
            continue
        read, write = os.pipe()
        launcher = os.fork()
        if launcher == 0:
            os.write(write, json.dumps(_fork_ranks(scenario, folder)).encode())
            time.sleep(LONGEST_SECONDS)
            os._exit(0)
        waiting |= {int(pid): name for pid, name in json.loads(os.read(read, 4096)).items()}
        ready = [folder / f"{scenario.name}-{rank}.ready" for rank in range(scenario.world)]
        kill_later(launcher, 1.0, ready)
    results: dict[str, dict[str, float]] = {}
    while waiting and time.monotonic() - started < LONGEST_SECONDS:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            time.sleep(0.02)
        elif pid in waiting:
            seconds = time.monotonic() - started
            code = os.waitstatus_to_exitcode(status)
            results[waiting.pop(pid)] = {"code": code, "seconds": seconds}
    for pid, name in waiting.items():  # stopped by SIGSTOP, or a fault of the code under test
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        results[name] = {"code": 0, "seconds": float("inf")}
    (folder / "results.json").write_text(json.dumps(results))


def kill_later(pid: int, seconds: float, after: Sequence[Path] = ()) -> None:
    """Kill a process in a while; some files have to be there first."""
    if os.fork() == 0:
        while not all(path.exists() for path in after):
            time.sleep(0.05)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _fork_ranks(scenario: Scenario, folder: Path) -> dict[int, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pids = {}
    for rank in range(scenario.world):
        pid = os.fork()
        if pid == 0:
            _be(rank, port, scenario, folder)
        pids[pid] = f"{scenario.name}-{rank}"
    return pids


def _be(rank: int, port: str, scenario: Scenario, folder: Path) -> None:
    """Be one process, and never return."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(scenario.world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    descriptor = os.open(folder / f"{scenario.name}-{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        if scenario.world > 1:
            torch.distributed.init_process_group("gloo")
        scenario.act()
        code = 0
    except BaseException:  # noqa: BLE001 - a process of its own: told, and never to go on
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
