"""One process measures its processor core: what `calibrate.py` starts, as many as will train."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer

from lert_ds import config, machine, pretrain, training
from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import LertForPreTraining

LARGE, SMALL = 1024, 256
"""Sizes of the products."""
LEAST_TOKENS = 1024
"""Of the layer that is measured: the instances of a micro-batch are as many as reach it."""
COPY_ELEMENTS = 2**24
"""64 MiB: more than a core's cache."""
REPEATS = 9


@dataclass(frozen=True)
class Measured:
    """What one process measured, or the mean of several."""

    large_flops: float
    """Operations a second of a linear layer of LARGE units on as many tokens, both ways."""
    small_flops: float
    """The same of SMALL units."""
    layer_seconds: float
    """Of a layer of the training's model, both ways, on `layer_tokens` tokens."""
    half_length_seconds: float
    """The same in twice as many instances of half the length."""
    layer_tokens: float
    copy_bytes: float
    """A second, read and written."""
    launch_seconds: float
    """To start one kernel."""


def best_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the least of so many runs after a warm-up: other work can only slow one down."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def measure(question: Mapping[str, Any]) -> Measured:
    """Measure in this process.

    Args:
        question: `run` (a resolved configuration of pretrain), `precision`, `length`,
            `hidden_size`, `intermediate_size`, `heads`.
    """
    torch.manual_seed(0)
    dtype = torch.float32 if question["precision"] in ("fp32", "autocast") else torch.bfloat16
    product = torch.float32 if question["precision"] == "fp32" else torch.bfloat16
    length = int(question["length"])
    instances = -(-LEAST_TOKENS // length)
    layer = _layer(question, dtype)
    linear = type(layer.output.dense)  # by the library that the run's kernels multiply with
    cast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if question["precision"] == "autocast":
        cast = torch.autocast("cpu", dtype=torch.bfloat16)
    with cast:
        whole = _layer_seconds(layer, instances, length, question["hidden_size"], dtype)
        half = _layer_seconds(layer, 2 * instances, length // 2, question["hidden_size"], dtype)
    return Measured(
        large_flops=_product_flops(linear, LARGE, product),
        small_flops=_product_flops(linear, SMALL, product),
        layer_seconds=whole,
        half_length_seconds=half,
        layer_tokens=instances * length,
        copy_bytes=_copy_rate(),
        launch_seconds=_launch_seconds(),
    )


def _layer(question: Mapping[str, Any], dtype: torch.dtype) -> BertLayer:
    """Return one layer of the model, with the dropout and the kernels of the run."""
    run = config.parse(pretrain.PretrainRun, dict(question["run"]), "plan")
    train = run.train.model_copy(update={"gradient_checkpointing": False})
    dropout = run.architecture.dropout
    shape = LertConfig(
        vocab_size=64,
        hidden_size=question["hidden_size"],
        num_hidden_layers=1,
        num_attention_heads=question["heads"],
        intermediate_size=question["intermediate_size"],
        max_position_embeddings=question["length"],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model = LertForPreTraining(shape).to(dtype).train()
    training.set_up_model(run.model_copy(update={"train": train}), model)
    layer: BertLayer = model.bert.encoder.layer[0]
    return layer


def _layer_seconds(
    layer: nn.Module, instances: int, length: int, hidden: int, dtype: torch.dtype
) -> float:
    inputs = torch.randn(instances, length, hidden).to(dtype).requires_grad_()

    def work() -> None:
        output = layer(inputs)
        (output[0] if isinstance(output, tuple) else output).float().sum().backward()

    return best_seconds(work)


def _product_flops(linear: type[nn.Linear], size: int, dtype: torch.dtype) -> float:
    layer = linear(size, size, bias=False).to(dtype)
    inputs = torch.randn(size, size).to(dtype).requires_grad_()
    gradient = torch.randn(size, size).to(dtype)
    repeats = (LARGE // size) ** 2

    def work() -> None:
        for _ in range(repeats):
            layer(inputs).backward(gradient)

    return 6.0 * size**3 * repeats / best_seconds(work)


def _copy_rate() -> float:
    source, target = torch.ones(COPY_ELEMENTS), torch.zeros(COPY_ELEMENTS)
    return 8.0 * COPY_ELEMENTS / best_seconds(lambda: target.copy_(source))


def _launch_seconds() -> float:
    small = torch.zeros(1, requires_grad=True)
    times = 500

    def work() -> None:
        for _ in range(times):
            torch.add(small, small)

    return best_seconds(work) / times


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201
    machine.keep_freed_memory()  # as a training does
    sys.stdin.readline()
    print(json.dumps(asdict(measure(json.loads(sys.argv[1])))), flush=True)  # noqa: T201
