"""Run under the `deepspeed` launcher: what two processes tell each other in a step of accumulation.

    deepspeed --num_gpus 2 tests/launch/collectives.py RESULT.json

For each machine, of each of the four micro-batches of a step: the collectives of its forward and
backward pass, and of what follows; and some weights after three steps, once accumulated and once of
one micro-batch that holds the same rows.
"""

import collections
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lert_ds import distributed
from lert_ds.objective import Batch, StepOutput
from lert_ds.train import deepspeed_config
from lert_ds.train.engine import Engine, join_processes, leave_processes
from lert_ds.train.optim import OptimizerConfig

MACHINES = (
    "zero0_fp32", "zero0_bf16", "zero1_fp32", "zero1_bf16", "zero1_autocast", "cpu_fp32",
    "zero2_fp32", "zero2_bf16", "zero2_bf16_offload", "zero3_fp32",
)  # fmt: skip
PROCESSES, MICRO, ACCUMULATION, STEPS = 2, 2, 4, 3


class Net(nn.Module):
    """Its matrices are larger than what ZeRO-3 keeps whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 360)
        self.layers = nn.ModuleList(nn.Linear(360, 360) for _ in range(2))

    def forward(self, batch: Batch, *, step: int) -> StepOutput:
        hidden = self.embedding(batch.input_ids)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return StepOutput(hidden.float().square().mean(), {})


def main() -> None:
    join_processes()
    found: dict[str, Any] = {}
    for machine in MACHINES:
        engine, counts = start(machine, MICRO), []
        for step in range(STEPS):
            counts = [counted(engine, step, place) for place in range(ACCUMULATION)]
        found[machine] = {"counts": counts, "accumulated": weights(engine)}
        engine = start(machine, MICRO * ACCUMULATION)
        for step in range(STEPS):
            train(engine, torch.cat([rows(step, place) for place in range(ACCUMULATION)]), step)
            engine.step()
        found[machine]["at once"] = weights(engine)
    if distributed.is_main():
        Path(sys.argv[-1]).write_text(json.dumps(found), "utf-8")
    leave_processes()


def start(machine: str, micro: int) -> Engine:
    batch = PROCESSES * MICRO * ACCUMULATION
    tree = deepspeed_config.resolve(
        Path("ds_configs") / f"{machine}.json",
        {
            "train_batch_size": batch,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": batch // (PROCESSES * micro),
            "gradient_clipping": 1.0,
        },
    )
    engine = Engine(Net(), OptimizerConfig(), tree)
    engine.train()
    engine.set_learning_rate(1e-2)
    return engine


def rows(step: int, place: int) -> torch.Tensor:
    number = (step * ACCUMULATION + place) * PROCESSES + distributed.rank()
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 11, (MICRO, 3), generator=generator)


def train(engine: Engine, inputs: torch.Tensor, step: int) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    engine.backward(engine(Batch(inputs, None, nothing, nothing, {}), step=step).loss)


def counted(engine: Engine, step: int, place: int) -> list[dict[str, int]]:
    """Train on a micro-batch; return the collectives of its passes, and of what follows."""
    tables = []
    for act in (lambda: train(engine, rows(step, place), step), engine.step):
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            act()  # type: ignore[no-untyped-call]
        names = [event.name for event in watched.events() or ()]
        tables.append(dict(collections.Counter(n for n in names if n.startswith("gloo:"))))
    return tables


def weights(engine: Engine) -> list[float]:
    whole = engine.full_weights()
    return [float(value) for name in sorted(whole) for value in whole[name].flatten()[::97]]


if __name__ == "__main__":
    main()
