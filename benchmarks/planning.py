r"""How far `lert-ds plan` is off: measured trainings on this machine, and published ones.

    python benchmarks/planning.py --corpus corpora/bench-128 \
        --output benchmarks/results/planning.json

Here: LERT with 4 layers of 256 at the corpus' length, in each ZeRO stage, on one core and on two.
The cores are measured before and after each training, and a plan is made of each; the error is that
of the mean of both against the median step, after a warm-up. Published: those of
`lert_ds/plan/published.py`; the two shares that all GPUs have in common (`Rates.sustained` and
`Rates.elements`) are fitted here to the trainings on one GPU (`--published` leaves it at that).
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lert_ds import config, pretrain
from lert_ds.machine import description
from lert_ds.plan import published
from lert_ds.plan.calibrate import measured_cpu
from lert_ds.plan.hardware import known
from lert_ds.plan.memory import fit as memory_fit
from lert_ds.plan.network import network_of
from lert_ds.plan.step import estimate
from lert_ds.plan.workload import Workload, kernels_on, workload_of
from lert_ds.train import deepspeed_config

ROOT = Path(__file__).parents[1]
WARM_UP_STEPS = 2
TRAININGS = [
    # DeepSpeed's configuration, processes, micro-batches accumulated
    *((f"zero{stage}_fp32", processes, 1) for processes in (1, 2) for stage in (0, 1, 2, 3)),
    ("zero1_fp32", 2, 4),
    ("zero2_fp32", 2, 4),
]
MICRO_BATCH_SIZE = 8


def overrides(corpus: Path, name: str, processes: int, accumulation: int, steps: int) -> list[str]:
    """Return the keys of one training."""
    return [
        f"corpus={corpus}", "corpus_valid=[]", f"deepspeed=ds_configs/{name}.json",
        "architecture.layers=4", f"train.steps={WARM_UP_STEPS + steps}",
        f"train.batch_size={MICRO_BATCH_SIZE * processes * accumulation}",
        f"train.micro_batch_size={MICRO_BATCH_SIZE}", "train.report_every=1",
        "train.evaluate_every=0", "train.save_every=0", "train.data_workers=0",
    ]  # fmt: skip


def trained(keys: list[str], processes: int) -> list[dict[str, float]]:
    """Return the reports of the steps after the warm-up, one core a process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "taskset", "--cpu-list", f"0-{processes - 1}",
            str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(processes),
            "--module", "lert_ds", "pretrain", "pretrain-small", f"output={folder}/run", *keys,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        lines = Path(folder, "run/metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [record for record in records if record["kind"] == "train"][WARM_UP_STEPS:]


def part_of(keys: list[str], processes: int) -> tuple[pretrain.PretrainRun, Workload]:
    """Return a training, and one process's part of it."""
    path = ROOT / "lert_ds/configs/pretrain-small.toml"
    run = config.load(pretrain.PretrainRun, path, ["output=unused", *keys])
    plan = pretrain.work_out(run, processes)
    kernels = kernels_on(run, "cpu", deepspeed_config.stage(plan.numbers.tree))
    return plan.run, workload_of(plan.run, plan.model, plan.numbers, processes, kernels)


def here(corpus: Path, steps: int) -> list[dict[str, Any]]:
    """Return prediction, measurement and error of each training on this machine.

    What was measured after one training is what was measured before the next.
    """
    rows, last, after = [], None, None
    os.environ["OMP_NUM_THREADS"] = "1"
    for name, processes, accumulation in TRAININGS:
        keys = overrides(corpus, name, processes, accumulation, steps)
        run, work = part_of(keys, processes)
        before = after
        if before is None or last != (processes, work.precision):
            before = measured_cpu(run, work, processes)
        reports = trained(keys, processes)
        last, after = (processes, work.precision), measured_cpu(run, work, processes)
        network = [network_of(device, processes, processes, None) for device in (before, after)]
        plans = [estimate(work, *pair) for pair in zip((before, after), network, strict=True)]
        tokens = work.batch_size * work.length
        seconds = [tokens / report["tokens_per_second"] for report in reports]
        predicted = statistics.fmean(plan.seconds for plan in plans)
        measured = statistics.median(seconds)
        rows.append(
            {
                "deepspeed": name,
                "processes": processes,
                "accumulation": accumulation,
                "predicted_seconds": round(predicted, 4),
                "predicted_before_and_after": [round(plan.seconds, 4) for plan in plans],
                "of_it_communication": round(statistics.fmean(p.communication for p in plans), 4),
                "measured_seconds": round(measured, 4),
                "measured_range": [round(min(seconds), 4), round(max(seconds), 4)],
                "error": round(predicted / measured - 1, 3),
                "error_of_the_fastest_step": round(predicted / min(seconds) - 1, 3),
                "predicted_gib": round(memory_fit(work, after).peak / 2**30, 3),
                "measured_gib_with_all_libraries": round(max(r["memory_gib"] for r in reports), 3),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def log_error(point: published.Point, sustained: float, elements: float) -> float:
    """Return the logarithm of predicted over measured, were these the two shares."""
    device = known(point.gpu)
    rates = replace(device.rates, sustained=sustained, elements=elements)
    device = replace(device, rates=rates)
    network = network_of(device, point.work.processes, point.per_node, point.interconnect)
    rate = point.work.batch_size / estimate(point.work, device, network).seconds
    return math.log(rate / point.measured)


def fitted(points: Sequence[published.Point]) -> tuple[float, float, float]:
    """Return the two shares with the least squares of `log_error`, and its root mean square."""
    grid = itertools.product(range(60, 101), range(25, 101))
    squares = {
        (sustained / 100, elements / 100): sum(
            log_error(point, sustained / 100, elements / 100) ** 2 for point in points
        )
        for sustained, elements in grid
    }
    best = min(squares, key=squares.__getitem__)
    return (*best, math.sqrt(squares[best] / len(points)))


def single(points: Sequence[published.Point]) -> list[published.Point]:
    """Return the trainings on one GPU, which the shares are fitted to."""
    return [point for point in points if point.work.processes == 1]


def elsewhere() -> dict[str, Any]:
    """Return predictions of published trainings, and the fit."""
    points = published.points()
    sustained, elements, error = fitted(single(points))
    left_out = {}
    for source in dict.fromkeys(point.source for point in single(points)):
        others = [point for point in single(points) if point.source != source]
        shares = fitted(others)[:2]
        own = [point for point in single(points) if point.source == source]
        left_out[source] = [round(math.exp(log_error(p, *shares)) - 1, 3) for p in own]
    return {
        "fit to one GPU": {
            "sustained": sustained,
            "elements": elements,
            "root_mean_square_log_error": round(error, 3),
            "errors of each source, fitted to the others": left_out,
        },
        "rows a second": [
            {
                "source": point.source,
                "training": point.name,
                "predicted": round(point.predicted, 1),
                "measured": round(point.measured, 1),
                "error": round(point.error, 3),
                "fitted": point.work.processes == 1,
            }
            for point in points
        ],
        "DeepSpeed's BERT-large, minutes": [
            {
                "gpus": record.gpus,
                "predicted": round(record.predicted_minutes, 1),
                "measured": record.measured_minutes,
                "error": round(record.predicted_minutes / record.measured_minutes - 1, 3),
            }
            for record in published.RECORDS
        ],
    }


def main() -> None:
    """Compare, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="corpus folder for the trainings here")
    parser.add_argument("--steps", type=int, default=12, help="measured, after the warm-up")
    parser.add_argument("--published", action="store_true", help="leave out the trainings here")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/planning.py", *sys.argv[1:]]),
        "machine": description(["torch", "deepspeed"]),
    }
    if not options.published:
        if options.corpus is None:
            parser.error("--corpus is needed, or --published")
        result["model"] = "LERT, 4 layers of 256, micro-batch 8, one thread a process"
        result["here, seconds a step"] = here(options.corpus.resolve(), options.steps)
    result["published"] = elsewhere()
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
