"""One all-reduce over all processes of all hosts, with its bandwidth: what every step does.

`start_all_reduce` runs on each host and starts a process a slot; each is this module's `main`, and
the first of all tells the result on its standard output. Each ends by itself in bounded time.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

MESSAGE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Of one all-reduce: as large as DeepSpeed's buckets, so that bandwidth counts and not latency."""
REPEATS = 5

Question = Mapping[str, Any]


def start_all_reduce(question: Question) -> dict[str, Any]:
    """Run this host's processes and return what each said.

    Args:
        question: `first_rank`, `slots`, `world_size`, `address` and `port` of the first host,
            `accelerator`, `seconds`.
    """
    seconds = float(question["seconds"]) * 2 / 3  # the answer must be in time
    processes = []
    for local in range(int(question["slots"])):
        environment = os.environ | {
            "RANK": str(int(question["first_rank"]) + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(question["world_size"]),
            "MASTER_ADDR": str(question["address"]),
            "MASTER_PORT": str(question["port"]),
            "LERT_DS_DOCTOR_SECONDS": str(seconds),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        for foreign in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID"):
            environment.pop(foreign, None)
        command = [sys.executable, "-m", __name__, str(question["accelerator"])]
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        )
    end = time.monotonic() + seconds + 5
    try:
        return {"said": [_result(process, end) for process in processes]}
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _result(process: subprocess.Popen[str], end: float) -> dict[str, Any]:
    try:
        said, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
        return dict(json.loads(said.strip().splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"problem": "the processes did not meet in time"}
    except (IndexError, ValueError):
        return {"problem": f"a process ended with exit code {process.returncode}"}


def main() -> None:
    """Meet the others, add up numbers with them, and say how fast, or what went wrong."""
    try:
        result = _measure(sys.argv[1], float(os.environ["LERT_DS_DOCTOR_SECONDS"]))
    except Exception as error:  # noqa: BLE001 - the one that asked tells it
        first = str(error).strip().splitlines()[:1]
        result = {"problem": f"{type(error).__name__}: {''.join(first)[:300]}"}
    print(json.dumps(result), flush=True)  # noqa: T201
    os._exit(0)  # threads of the communication library may wait for a peer that is gone


def _measure(accelerator: str, seconds: float) -> dict[str, Any]:
    import torch
    import torch.distributed

    cuda = accelerator == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    world = torch.distributed.get_world_size()
    numbers = torch.ones(MESSAGE_BYTES["cuda" if cuda else "cpu"] // 4, device=device)
    numbers *= torch.distributed.get_rank() + 1
    torch.distributed.all_reduce(numbers)
    if not bool((numbers == world * (world + 1) / 2).all()):
        return {"problem": "the sum over all processes is wrong"}
    times = []
    for _ in range(REPEATS):
        torch.distributed.barrier()
        started = time.perf_counter()
        torch.distributed.all_reduce(numbers.fill_(1.0))
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    if cuda:  # checkpoints agree by gloo
        host = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        torch.distributed.all_reduce(torch.ones(1), group=host)
    with contextlib.suppress(RuntimeError):
        torch.distributed.barrier()
    size = numbers.numel() * 4
    # As nccl-tests counts: each process sends and receives 2 (n - 1) / n of the message.
    bus = 2 * (world - 1) / world * size / min(times)
    return {"backend": backend, "bytes": size, "seconds": min(times), "bus_bytes_per_second": bus}


if __name__ == "__main__":
    main()
