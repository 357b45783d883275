"""The largest micro-batch whose forward and backward pass fit beside the optimizer's memory."""

import gc

import psutil
import torch

from lert_ds.objective import AnyBatch
from lert_ds.train.engine import Engine
from lert_ds.training_benchmark.synthetic_data import SyntheticData

LIMIT = 4096
_CPU_SHARE = 0.8
"""Of the free memory of a machine without a GPU: beyond that it swaps or kills."""


def largest_micro_batch(engine: Engine, data: SyntheticData, length: int) -> int:
    """Return the most instances of `length` tokens that fit, to an eighth; 0 where none does.

    It is doubled until it does not fit and then halved into. Every process must call it, and each
    gets its own. Gradients are left in the engine: nothing may be trained with it afterwards.
    """
    low, high = 0, 1
    while high <= LIMIT and _fits(engine, data, high, length):
        low, high = high, 2 * high
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(engine, data, middle, length) else (low, middle)
    return low


def _fits(engine: Engine, data: SyntheticData, instances: int, length: int) -> bool:
    if engine.device.type != "cuda":
        return _fits_host(engine, data, instances, length)
    fits = True
    try:
        _pass(engine, data.batch(instances, length, 0))
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        fits = False
    gc.collect()
    torch.cuda.empty_cache()
    return fits


def _fits_host(engine: Engine, data: SyntheticData, instances: int, length: int) -> bool:
    """Predict from half as many, whose passes fit: a host has no error to catch."""
    process = psutil.Process()
    before = process.memory_info().rss
    free = psutil.virtual_memory().available
    output = engine(data.batch(max(1, instances // 2), length, 0).to(engine.device), step=0)
    kept = process.memory_info().rss - before
    engine.backward(output.loss)
    return bool(2 * kept < _CPU_SHARE * free)


def _pass(engine: Engine, batch: AnyBatch) -> None:
    output = engine(batch.to(engine.device), step=0)
    engine.backward(output.loss)
