"""`lert-ds plan`: a configuration of `pretrain` and a machine to memory, time and cost.

Read with `workload.py` (what a process computes), `compute.py` and `communication.py` (how long
that takes), `step.py` (put together) and `memory.py`; `docs/plan.md` says how far it is off.
"""

import argparse
import json
from pathlib import Path

from lert_ds import cli, machine, pretrain
from lert_ds.errors import ConfigError
from lert_ds.plan import calibrate, hardware, text
from lert_ds.plan.hardware import CPU, CUSTOM, Device
from lert_ds.plan.memory import fit, largest_micro_batch
from lert_ds.plan.network import Network, network_of
from lert_ds.plan.step import Throughput, estimate
from lert_ds.plan.text import PhasePlan, Plan
from lert_ds.plan.workload import Workload, in_phase, kernels_on, workload_of
from lert_ds.train import deepspeed_config
from lert_ds.train.trainer import TrainConfig

COUNTS = (1, 8, 16, 64, 256, 1024)
"""Numbers of GPUs in a table."""

_EPILOG = f"""\
examples:
  lert-ds plan pretrain-large --gpus 64 --gpu h100 --interconnect 8x400gbit --table
  lert-ds plan pretrain-base train.micro_batch_size=16 --gpu rtx4090 --gpus 4 --gpus-per-node 4
  lert-ds plan pretrain-small deepspeed=ds_configs/cpu_fp32.json --gpu cpu --gpus 2
  lert-ds plan my.toml --gpu custom --peak-tflops 200 --memory-gib 64 --memory-bandwidth-gbytes 1600

GPUs: {", ".join(hardware.GPUS)}; cpu is measured on this machine, as many processes at once.
The keys are those of `lert-ds pretrain --help`. An estimate: docs/plan.md says how it is made, and
how far it is from trainings that were measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.add_argument("config", metavar="CONFIG", help="of pretrain: a .toml file, or a preset")
    parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="wins over the file")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many train (1)")
    parser.add_argument("--gpu", default="h100", metavar="KIND", help="which ones (h100)")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="how many a node has (8; cpu: its cores)"
    )
    parser.add_argument(
        "--interconnect", metavar="SPEED", help="of a node to the others: 400gbit, 8x400gbit"
    )
    parser.add_argument(
        "--table", action="store_true", help=f"more and more GPUs: {', '.join(map(str, COUNTS))}"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument(
        "--price", type=float, metavar="P", help="of a GPU's hour, to tell the cost"
    )
    sheet = parser.add_argument_group(f"the data sheet of --gpu {CUSTOM}")
    sheet.add_argument("--peak-tflops", type=float, metavar="T", help="dense, bf16 and fp16")
    sheet.add_argument("--memory-gib", type=float, metavar="G", help="size of its memory")
    sheet.add_argument("--memory-bandwidth-gbytes", type=float, metavar="B", help="GB/s")
    sheet.add_argument(
        "--link-gbytes", type=float, default=32.0, metavar="B",
        help="GB/s one way to the others of its node (32: PCIe 4)",
    )  # fmt: skip
    parser.set_defaults(
        config_class=pretrain.PretrainRun,
        preset_folder=Path(pretrain.__file__).parent / "configs",
        command="pretrain",
    )
    parser.epilog = _EPILOG


def run(arguments: argparse.Namespace) -> None:
    """Print a plan, and a table of more and more GPUs where that is asked."""
    given = cli.read_config(pretrain.PretrainRun, arguments)
    if arguments.price is not None and not arguments.price >= 0:
        raise ConfigError(f"--price {arguments.price:g}: must be 0 or more")
    if arguments.gpus < 1:
        raise ConfigError(f"--gpus {arguments.gpus}: must be 1 or more")
    train, work = _workload(given, arguments, arguments.gpus)
    device = _device(given, arguments, work)
    plan = _plan(arguments, device, work, train)
    plans = _table(given, arguments, device) if arguments.table else []
    if arguments.json:
        tree = text.as_tree(plan) | ({"table": [text.as_tree(p) for p in plans]} if plans else {})
        print(json.dumps(tree, indent=2))  # noqa: T201
        return
    print(text.describe(plan))  # noqa: T201
    if plans:
        print(f"\n{text.table(plans)}")  # noqa: T201


def _workload(
    given: pretrain.PretrainRun, arguments: argparse.Namespace, gpus: int
) -> tuple[TrainConfig, Workload]:
    """Return how a run trains, with its steps, and its part on each of `gpus`."""
    planned = pretrain.work_out(given, gpus)
    kind = "cpu" if arguments.gpu == CPU else "cuda"
    kernels = kernels_on(given, kind, deepspeed_config.stage(planned.numbers.tree))
    work = workload_of(planned.run, planned.model, planned.numbers, gpus, kernels)
    return planned.run.train, work


def _device(given: pretrain.PretrainRun, arguments: argparse.Namespace, work: Workload) -> Device:
    """Return the device that is named, measured where it is a core of this machine.

    Raises:
        ConfigError: it is not known, or has not the precision of the training.
    """
    if arguments.gpu == CPU:
        if work.precision == "fp16":
            raise ConfigError(
                f"--gpu {CPU}: it has no fp16; set deepspeed=ds_configs/cpu_bf16.json"
            )
        processes = min(arguments.gpus, _per_node(arguments))
        if processes > (cores := machine.usable_cores()):
            raise ConfigError(
                f"--gpus {processes}: this machine has {cores} cores to measure on; set "
                f"--gpus-per-node {cores} and --interconnect for more"
            )
        return calibrate.measured_cpu(given, work, processes)
    if arguments.gpu == CUSTOM:
        return hardware.custom(
            arguments.peak_tflops, arguments.memory_gib, arguments.memory_bandwidth_gbytes,
            arguments.link_gbytes,
        )  # fmt: skip
    device = hardware.known(arguments.gpu)
    if work.fp8 and "fp8" not in device.flops:
        raise ConfigError(
            f"--gpu {device.name}: it does not multiply in 8 bits; set kernels.fp8=off"
        )
    if work.precision in ("bf16", "autocast") and not device.has_bf16:
        raise ConfigError(
            f"--gpu {device.name}: it has no bf16; set deepspeed=ds_configs/zero1_fp16.json"
        )
    return device


def _per_node(arguments: argparse.Namespace) -> int:
    if arguments.gpus_per_node is not None:
        return int(arguments.gpus_per_node)
    return machine.usable_cores() if arguments.gpu == CPU else 8


def _plan(
    arguments: argparse.Namespace, device: Device, work: Workload, train: TrainConfig
) -> Plan:
    network = network_of(device, work.processes, _per_node(arguments), arguments.interconnect)
    step = estimate(work, device, network)
    return Plan(
        work=work,
        device=device,
        network=network,
        fit=fit(work, device),
        largest_micro_batch=largest_micro_batch(work, device),
        step=step,
        throughput=Throughput.of(work, device, step),
        phases=tuple(
            _phase(device, network, in_phase(work, phase), phase.steps)
            for phase in train.phases(train.steps)
        ),
        price=arguments.price,
    )


def _phase(device: Device, network: Network, work: Workload, steps: int) -> PhasePlan:
    seconds = estimate(work, device, network).seconds
    return PhasePlan(steps, work.batch_size, work.length, seconds)


def _table(
    given: pretrain.PretrainRun, arguments: argparse.Namespace, device: Device
) -> list[Plan]:
    """Return plans on more and more GPUs, those that divide the batch and that can be joined."""
    plans = []
    for gpus in sorted({*COUNTS, arguments.gpus}):
        per_node = _per_node(arguments)
        joined = gpus <= per_node or (arguments.interconnect and gpus % per_node == 0)
        if joined and all(size % gpus == 0 for size in given.train.batch_sizes):
            train, work = _workload(given, arguments, gpus)
            plans.append(_plan(arguments, device, work, train))
    return plans
