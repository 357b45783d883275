"""`lert-ds benchmark pretrain CONFIG`: the steady steps of a pre-training, taken apart.

    lert-ds benchmark pretrain pretrain-small train.batch_size=4 train.micro_batch_size=4
    deepspeed --module lert_ds benchmark pretrain pretrain-large --steps 20 --json result.json

Steps are those of the configuration: its engine, kernels, micro-batch and accumulation; nothing is
written but what the flags name, and no weight moves. Where the corpus is not there, random
instances of its shape stand for it.
"""

import argparse
import logging
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from lert_ds import cli, distributed, pretrain, run_folder, training
from lert_ds.files import write_json
from lert_ds.machine import description
from lert_ds.train.engine import Engine
from lert_ds.training_benchmark.largest import largest_micro_batch
from lert_ds.training_benchmark.operations import Seen, look
from lert_ds.training_benchmark.steps import PARTS, Times, take_steps
from lert_ds.training_benchmark.synthetic_data import SyntheticData

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "deepspeed", "transformers", "triton", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    presets = Path(pretrain.__file__).parent / "configs"
    cli.add_config_arguments(parser, pretrain.PretrainRun, presets)
    parser.add_argument("--steps", type=_count, default=10, help="measured steps (default: 10)")
    parser.add_argument("--warm-up", type=_count, default=3, help="steps before (default: 3)")
    parser.add_argument(
        "--profiled", type=int, default=2, help="steps under a profiler (default: 2; 0: no profile)"
    )
    parser.add_argument("--largest", action="store_true", help="find the largest micro-batch too")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace (.json)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print a table on the main process."""
    config = cli.read_config(pretrain.PretrainRun, arguments)
    if arguments.dry_run:
        cli.print_config(config)
        return
    result = measure(config, arguments)
    if distributed.is_main():
        print(table(result))  # noqa: T201
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.json, result)


def measure(config: pretrain.PretrainRun, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a configuration; all processes must call it.

    Raises:
        UserError: something does not fit together.
    """
    real = pretrain.has_corpus(config)
    config, facts, model_config, numbers, _ = pretrain.work_out(config, distributed.world_size())
    synthetic = SyntheticData(facts, config.masking, not config.attend_across_documents)
    with run_folder.joined(config.train.timeout_seconds):
        objective, kernels = pretrain.make_objective(config, model_config)
        engine = Engine(objective, config.optimizer, numbers.tree)
        data = pretrain.open_corpora(config).for_kernels(kernels) if real else synthetic
        stream = data.batches(config.train, config.seed, numbers.micro_batch_size)
        batches = stream.training(0, 0)
        batch_size = config.train.batch_size_at(0)

        def steps(count: int) -> Times:
            return take_steps(
                engine, batches, count, step=config.train.steps - 1, batch_size=batch_size
            )

        started = time.perf_counter()
        steps(1)
        first_seconds = time.perf_counter() - started
        steps(arguments.warm_up)
        if engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        # The matrix rate before and after: a clock or a neighbour may change in between.
        rates = [training.peak_flops(engine)]
        times = steps(arguments.steps)
        rates.append(training.peak_flops(engine))
        memory = _memory_bytes(engine.device)
        seen = Seen({}, [])
        if arguments.profiled:
            seen = look(lambda: steps(arguments.profiled), engine.device, arguments.trace)
        largest = None
        if arguments.largest:
            largest = largest_micro_batch(engine, synthetic, facts.length)
    processes = distributed.world_size()
    tokens = times.tokens / len(times.steps)
    flops = numbers.flops_per_token_at(0)
    return {
        "machine": description(_PACKAGES) | _device(engine.device),
        "data": "corpus" if real else "synthetic",
        "parameters": numbers.parameters,
        "length": config.train.length_at(0) or facts.length,
        "micro_batch_size": numbers.micro_batch_size,
        "batch_size": batch_size,
        "processes": processes,
        "precision": engine.precision,
        "stage": engine.stage,
        "kernels": asdict(kernels),
        "first_step_seconds": first_seconds,
        "step_seconds": {"median": times.step_seconds, "all": times.steps},
        "processor_seconds": times.processor,
        "part_seconds": {part: times.median(part) for part in PARTS},
        "tokens_per_step": tokens * processes,
        "tokens_per_second": tokens * processes / times.step_seconds,
        "instances_per_second": batch_size / times.step_seconds,
        "flops_per_token": flops,
        "flops_per_second": tokens * flops / times.step_seconds,
        "matrix_flops_per_second": statistics.mean(rates),
        "mfu": tokens * flops / times.step_seconds / statistics.mean(rates),
        "peak_memory_bytes": memory,
        "operation_shares": seen.kinds,
        "longest_operations": seen.longest,
        "largest_micro_batch": largest,
    }


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def table(result: dict[str, Any]) -> str:
    """Return the figures as text."""
    step = result["step_seconds"]["median"]
    rows = [
        ("device", result["machine"].get("gpu") or result["machine"]["cpu"]),
        ("kernels", ", ".join(f"{name} {value}" for name, value in result["kernels"].items())),
        (
            "batch",
            f"{result['batch_size']} instances of {result['length']} tokens, "
            f"{result['micro_batch_size']} a micro-batch, {result['processes']} processes, "
            f"{result['precision']}, ZeRO {result['stage']}, {result['data']} data",
        ),
        ("first step", f"{result['first_step_seconds']:.1f} s"),
        ("step", f"{1000 * step:,.1f} ms"),
        *(
            (f"  {part}", f"{1000 * seconds:,.1f} ms  {seconds / step:6.1%}")
            for part, seconds in result["part_seconds"].items()
        ),
        ("operations", ""),
        *(
            (f"  {kind}", f"{share:6.1%}")
            for kind, share in sorted(result["operation_shares"].items(), key=lambda one: -one[1])
        ),
        ("tokens a second", f"{result['tokens_per_second']:,.0f}"),
        ("instances a second", f"{result['instances_per_second']:,.1f}"),
        (
            "model FLOP/s",
            f"{result['flops_per_second'] / 1e12:.3f} T a process, "
            f"{result['mfu']:.1%} of {result['matrix_flops_per_second'] / 1e12:.3f} T measured",
        ),
        ("peak memory", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"),
    ]
    if result["largest_micro_batch"] is not None:
        rows.append(("largest micro-batch", f"{result['largest_micro_batch']} instances"))
    return "\n".join(f"{name:<20} {text}".rstrip() for name, text in rows)
