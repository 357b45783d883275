"""The processor cores here as a `Device`: measured while as many processes work as will train.

Each process measures, on its own core, a linear layer's products at two sizes, a layer of the
training's own model at the run's length and at half of it, and a copy; then all of them add up a
message. The best of several tries counts: other work on the machine can only slow one down.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import psutil

from lert_ds import config, machine
from lert_ds.doctor.all_reduce import start_all_reduce
from lert_ds.errors import UserError
from lert_ds.plan.compute import layer_bytes, layer_products
from lert_ds.plan.hardware import CPU, Device, Rates
from lert_ds.plan.measure import LARGE, SMALL, Measured
from lert_ds.plan.workload import ELEMENT_BYTES, Workload
from lert_ds.training_run import TrainingRun

SECONDS = 120.0
"""The longest that it may take."""
GLOO_SECONDS = 200e-6
"""To start a collective of gloo. Assumed."""


def measured_cpu(run: TrainingRun, work: Workload, processes: int) -> Device:
    """Return a core here, as `processes` of this host have one, and what joins them.

    Raises:
        UserError: the measurement failed.
    """
    shape = work.shape
    told = _ask(
        {
            "run": config.dump(run),
            "precision": work.precision,
            "length": work.length,
            "hidden_size": shape.hidden_size,
            "intermediate_size": round(shape.intermediate_size),
            "heads": max(1, round(shape.hidden_size * work.heads / shape.attention_size)),
        },
        processes,
    )
    names = told[0].keys()
    mean = Measured(**{name: statistics.fmean(one[name] for one in told) for name in names})
    link, collective = _all_reduce_rate(processes) if processes > 1 else (1e9, 0.0)
    memory = psutil.virtual_memory().total / processes
    return device_of(mean, work, link, collective, memory)


def device_of(
    measured: Measured,
    work: Workload,
    link: float,
    collective_seconds: float,
    memory_bytes: float,
) -> Device:
    """Return a device whose formulas give back what was measured.

    `inner_half`, k½ of the product's rate k / (k + k½), follows from two sizes; what of a layer
    grows with the length is attention, and what its products leave of the rest is element-wise.
    Another precision than the measured one is not known.
    """
    ratio = max(1.0, measured.large_flops / measured.small_flops)
    half = LARGE * SMALL * (ratio - 1) / max(1.0, LARGE - ratio * SMALL)
    half = min(half, 4.0 * LARGE)  # two noisy figures may say anything
    full = measured.large_flops * (LARGE + half) / LARGE * 8192 / (8192 + half)
    device = Device(
        name=CPU,
        flops=MappingProxyType({"fp32" if work.precision == "fp32" else "half": full}),
        memory_bytes=memory_bytes,
        bytes_per_second=measured.copy_bytes,
        link_bytes_per_second=link,
        host_bytes_per_second=measured.copy_bytes,
        link_name="gloo",
        overlaps=False,
        fused_attention=False,
        rates=Rates(
            matrix=1.0, inner_half=half, memory=1.0, sustained=1.0, elements=1.0, link=1.0,
            launch_seconds=measured.launch_seconds,
        ),
        collective_seconds=collective_seconds,
    )  # fmt: skip
    return _with_layer(device, measured, work)


def _with_layer(device: Device, measured: Measured, work: Workload) -> Device:
    """Return the device with the rates that a layer of the training's own showed."""
    tokens = round(measured.layer_tokens)
    alone = replace(work, micro_batch_size=1, length=tokens)
    longer = max(0.0, measured.layer_seconds - measured.half_length_seconds)
    attention = max(2 * longer, 0.02 * measured.layer_seconds)
    products = sum(layer_products(alone, device))
    elements = measured.layer_seconds - attention - products
    elements = max(elements, 0.05 * measured.layer_seconds)
    operations = 12.0 * tokens * work.length * work.shape.attention_size
    moved = tokens * sum(layer_bytes(work, ELEMENT_BYTES[work.precision]))
    return replace(
        device, attention_flops=operations / attention, element_bytes_per_second=moved / elements
    )


def _ask(question: Mapping[str, Any], processes: int) -> list[dict[str, float]]:
    """Return what each of so many processes measured, all at the same time."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(
        max(1, machine.usable_cores() // max(1, processes))
    )
    command = [sys.executable, "-m", "lert_ds.plan.measure", json.dumps(question)]
    running = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"OMP_NUM_THREADS": threads},
        )
        for _ in range(processes)
    ]  # fmt: skip
    try:
        for process in running:  # all are ready before one begins
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [_answer(process) for process in running]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"--gpu {CPU}: the measurement ended early: {error}") from error
    finally:
        for process in running:
            process.kill()
            process.wait()


def _answer(process: "subprocess.Popen[str]") -> dict[str, float]:
    said, problems = process.communicate(timeout=SECONDS)
    try:
        return dict(json.loads(said.splitlines()[-1]))
    except (IndexError, ValueError) as error:
        last = (problems.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"--gpu {CPU}: the measurement failed: {last}") from error


def _all_reduce_rate(processes: int) -> tuple[float, float]:
    """Return the bytes a second that a process sends in an all-reduce, and a collective's start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = start_all_reduce(
        {
            "first_rank": 0, "slots": processes, "world_size": processes, "port": port,
            "address": "127.0.0.1", "accelerator": "cpu", "seconds": SECONDS,
        }
    )["said"]  # fmt: skip
    problems = [one["problem"] for one in said if "problem" in one]
    if problems:
        raise UserError(f"--gpu {CPU}: no all-reduce here: {problems[0]}; lert-ds doctor says more")
    return statistics.fmean(one["bus_bytes_per_second"] for one in said), GLOO_SECONDS
