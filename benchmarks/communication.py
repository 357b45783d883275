"""What the communication of a training step costs, by DeepSpeed's settings: two processes, CPU.

    deepspeed --num_gpus 2 benchmarks/communication.py \
        --output benchmarks/results/communication.json

Four layers of LERT-small with its vocabulary (9 M parameters) train on rows so short that a step
is little but communication and update. The settings take turns, round after round; a line a
setting: the median of a step and of its parts, the spread, and the collectives. Accumulation 4:
three micro-batches, then the one at whose end the gradients are summed, then the update.
"""

import argparse
import collections
import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lert_ds import distributed
from lert_ds.configuration_lert import LertConfig
from lert_ds.labels import LTP_TAGS
from lert_ds.machine import description
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LipConfig, PretrainingObjective
from lert_ds.train.engine import Engine, join_processes, leave_processes
from lert_ds.train.optim import OptimizerConfig

ACCUMULATION, MICRO, LENGTH, MASKED = 4, 1, 16, 2
BASE: Mapping[str, Any] = {
    "contiguous_gradients": True,
    "overlap_comm": False,
    "reduce_scatter": True,
    "reduce_bucket_size": 50_000_000,
    "allgather_bucket_size": 50_000_000,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 2": {"stage": 2},
    "stage 1, overlap_comm": {"stage": 1, "overlap_comm": True},
    "stage 2, overlap_comm": {"stage": 2, "overlap_comm": True},
    "stage 1, buckets of 1 M": {
        "stage": 1, "reduce_bucket_size": 1_000_000, "allgather_bucket_size": 1_000_000,
    },
    "stage 1, buckets of 5 M": {
        "stage": 1, "reduce_bucket_size": 5_000_000, "allgather_bucket_size": 5_000_000,
    },
    "stage 1, buckets of 200 M": {
        "stage": 1, "reduce_bucket_size": 200_000_000, "allgather_bucket_size": 200_000_000,
    },
    "stage 1, reduced to the owner": {"stage": 1, "use_multi_rank_bucket_allreduce": False},
    "stage 1, reduce_scatter off": {"stage": 1, "reduce_scatter": False},
    "stage 1, contiguous_gradients off": {"stage": 1, "contiguous_gradients": False},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    join_processes()
    engines = {name: start(settings) for name, settings in SETTINGS.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
    for number in range(arguments.rounds + 1):
        for name, engine in engines.items():
            taken = step(engine)
            if number:  # the first warms up
                times[name].append(taken)
        if distributed.is_main():
            sys.stderr.write(f"round {number} of {arguments.rounds}\n")
    rows = [
        {"settings": name, **summary(times[name]), "collectives": counted(engine)}
        for name, engine in engines.items()
    ]
    if distributed.is_main():
        record = {"machine": description(), "processes": distributed.world_size(),
                  "accumulation": ACCUMULATION, "rounds": arguments.rounds,
                  "parameters": parameters(engines["stage 0"]), "rows": rows}  # fmt: skip
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    leave_processes()


def start(settings: Mapping[str, Any]) -> Engine:
    torch.manual_seed(0)
    shape = LertConfig(
        vocab_size=21_128, num_hidden_layers=4, hidden_size=256, num_attention_heads=4,
        intermediate_size=1024, tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
    )  # fmt: skip
    objective = PretrainingObjective(LertForPreTraining(shape), LipConfig(), 100)
    tree = {
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": ACCUMULATION,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        "zero_optimization": {**BASE, **settings} if settings["stage"] else {"stage": 0},
    }
    engine = Engine(objective, OptimizerConfig(), tree)
    engine.train()
    engine.set_learning_rate(1e-4)
    return engine


def parameters(engine: Engine) -> int:
    return sum(weight.numel() for weight in engine.full_weights().values())


def batch() -> Batch:
    ids = torch.randint(200, 20_000, (MICRO, LENGTH))
    places = torch.arange(MASKED)
    tags = {task: torch.zeros(MASKED, dtype=torch.int64) for task in LTP_TAGS}
    return Batch(ids, None, places, ids.flatten()[places], tags)


def step(engine: Engine) -> list[float]:
    """Take a step; return the seconds of the passes before the last, of the last, of the update."""
    distributed.barrier()
    marks = [time.perf_counter()]
    for place in range(ACCUMULATION):
        engine.backward(engine(batch(), step=0).loss)
        if place >= ACCUMULATION - 2:
            marks.append(time.perf_counter())
        engine.step()
    marks.append(time.perf_counter())
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def summary(times: list[list[float]]) -> dict[str, Any]:
    totals = [sum(one) for one in times]
    parts = [round(1e3 * statistics.median(part)) for part in zip(*times, strict=True)]
    return {
        "step_ms": round(1e3 * statistics.median(totals)),
        "spread_ms": [round(1e3 * min(totals)), round(1e3 * max(totals))],
        "before_ms": parts[0],
        "last_ms": parts[1],
        "update_ms": parts[2],
    }


def counted(engine: Engine) -> dict[str, int]:
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        step(engine)
    names = [event.name for event in watched.events() or ()]
    found = collections.Counter(name for name in names if name.startswith("gloo:"))
    found["gloo:barrier"] -= 1  # that of `step`
    return {name.removeprefix("gloo:"): count for name, count in found.items() if count > 0}


if __name__ == "__main__":
    main()
