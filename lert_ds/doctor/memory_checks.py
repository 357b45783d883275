"""Whether a run's memory fits: devices, hosts, control groups, shared memory, limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from lert_ds.data.shards import ARRAYS, OTHER_FILES
from lert_ds.doctor.plan import Plan
from lert_ds.doctor.row import Row
from lert_ds.doctor.software_checks import Facts

PROCESS_BYTES = 400 * 2**20
"""Python, torch, transformers and DeepSpeed in a process, before there is a model (measured)."""
DEVICE_BYTES = 1.5 * 2**30
"""On a GPU: the context, communication buffers, what the allocator cannot use."""
COPY_BYTES_A_PARAMETER = 12
"""On the host, over all processes, while a checkpoint is written (train.save_in_background)."""
TIGHT = 0.9
"""Beyond this share of what is there, an estimate may be wrong by the rest."""
SHARED_BYTES = 66 * 2**20
"""Of /dev/shm a process, where all are on one host: DeepSpeed's csrc/cpu/comm/shm.cpp."""
LIMIT_OF_FILES = 4096


def check_memory(facts: Facts, slots: Mapping[str, int], plan: Plan) -> list[Row]:
    """Hold the estimate of a process times the processes of a host against what is there."""
    rows = []
    for host, each in facts.items():
        devices, count = each["accelerator"]["devices"], slots[host]
        if each["accelerator"]["name"] == "cuda":
            needed = plan.device_bytes + DEVICE_BYTES
            for number, device in enumerate(devices[:count]):
                rows.append(
                    _judge(
                        "device memory",
                        host,
                        needed,
                        device["free_bytes"],
                        f"a process, on device {number}",
                    )
                )
            on_host = count * (plan.host_bytes + PROCESS_BYTES + _copy_bytes(plan))
        else:
            each_takes = plan.device_bytes + plan.host_bytes + PROCESS_BYTES + _copy_bytes(plan)
            on_host = count * each_takes
        available, swap = each["memory"]["available_bytes"], each["memory"]["swap_free_bytes"]
        left = each["memory"]["group_left_bytes"]
        limited = left is not None and left < available
        what = f"{count} processes" if count > 1 else "one process"
        rows.append(
            _judge(
                "memory",
                host,
                on_host,
                left if limited else available,
                what,
                limited=limited,
                swap=0 if limited else swap,
            )
        )
    return rows


def _copy_bytes(plan: Plan) -> float:
    """Return what a process's part of the copy takes that is written while training goes on."""
    train = plan.config["train"]
    copies = train["save_every"] and train["save_in_background"]
    return COPY_BYTES_A_PARAMETER * plan.parameters / plan.processes if copies else 0.0


def _judge(
    check: str,
    host: str,
    needed: float,
    free: float,
    what: str,
    *,
    limited: bool = False,
    swap: float = 0,
) -> Row:
    whose = " under the control group's limit" if limited else ""
    told = f"{what}: about {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free{whose}"
    remedy = (
        "a smaller train.micro_batch_size, train.gradient_checkpointing=true, a higher ZeRO stage, "
        "offload, or fewer processes"
    )
    if needed > free + swap:
        return Row(check, "FAIL", told, remedy, (host,))
    if needed > free:
        return Row(check, "WARN", f"{told}: it would swap", remedy, (host,))
    if needed > TIGHT * free:
        return Row(check, "WARN", f"{told}, and this is an estimate", remedy, (host,))
    return Row(check, "OK", told, hosts=(host,))


def check_shared_memory(facts: Facts, slots: Mapping[str, int]) -> list[Row]:
    """Check /dev/shm, through which processes on one host add up numbers on a CPU."""
    rows = []
    for host, each in facts.items():
        count, free = slots[host], each["memory"]["shared_free_bytes"]
        alone = len(facts) == 1 and count > 1 and each["accelerator"]["name"] == "cpu"
        needed = SHARED_BYTES * count if alone else 0
        told = f"{free / 2**20:,.0f} MiB free in /dev/shm"
        if needed > free:
            rows.append(
                Row(
                    "shared memory",
                    "FAIL",
                    f"{told}, {count} processes take {needed / 2**20:,.0f} MiB",
                    "enlarge it (mount -o remount,size=…; docker run --shm-size=…)",
                    (host,),
                )
            )
        elif free < 2 * SHARED_BYTES:
            rows.append(
                Row(
                    "shared memory",
                    "WARN",
                    told,
                    "enlarge it: data workers hand batches "
                    "over through it (docker run --shm-size=…)",
                    (host,),
                )
            )
        else:
            rows.append(Row("shared memory", "OK", "room in /dev/shm", hosts=(host,)))
    return rows


def check_limits(facts: Facts, shards: int | None) -> list[Row]:
    """Check what the shell of each host allows a process (ulimit)."""
    rows = []
    for host, each in facts.items():
        problems = _limit_problems(each["limits"], each["memory"], shards)
        rows += [
            Row("limits", status, found, remedy, (host,)) for status, found, remedy in problems
        ]
        if not problems:
            rows.append(Row("limits", "OK", "open files, address space, processes", hosts=(host,)))
    return rows


def _limit_problems(
    limits: Mapping[str, Sequence[int | None]], memory: Mapping[str, Any], shards: int | None
) -> list[tuple[Any, str, str]]:
    problems: list[tuple[Any, str, str]] = []
    hard = limits["open_files"][1]
    needed = OTHER_FILES + (0 if shards is None else shards * len(ARRAYS))
    if hard is not None and hard < needed:
        problems.append(
            (
                "FAIL",
                f"{hard} open files allowed, {needed} needed",
                "raise it: ulimit -Hn, /etc/security/limits.conf",
            )
        )
    space = limits["address_space"][0]
    if space is not None and space < memory["total_bytes"]:
        problems.append(
            (
                "WARN",
                f"address space limited to {space / 2**30:.1f} GiB (ulimit -v)",
                "ulimit -v unlimited: memory maps count, used or not",
            )
        )
    most = limits["processes"][0]
    if most is not None and most < LIMIT_OF_FILES:
        problems.append(
            (
                "WARN",
                f"{most} processes and threads allowed (ulimit -u)",
                f"allow {LIMIT_OF_FILES} or more",
            )
        )
    locked = limits["locked_memory"][0]
    if limits["infiniband"] and locked is not None:
        problems.append(
            (
                "WARN",
                f"locked memory limited to {locked / 2**20:.0f} MiB with InfiniBand",
                "ulimit -l unlimited, for shells that ssh opens too",
            )
        )
    return problems
