"""What DeepSpeed 0.19.8 sends in a step, by ZeRO stage, and what of it the computation hides.

With P parameters (read in its `runtime/engine.py`, `runtime/zero/stage_1_and_2.py`, `stage3.py`):

    0  gradients are added up everywhere (all-reduce, 2P) once a step, after the backward pass
    1  in buckets, once a step, beside the last backward pass with overlap_comm; all-reduced (2P),
       not reduced to their owner, unless use_multi_rank_bucket_allreduce is off; then the new
       weights are gathered (P), after the update
    2  the same, but the buckets go in every micro-batch: (accumulation · 2P) + P
    3  every micro-batch: weights are gathered forward (P) and, where they were let go, backward
       (P more; with stage3_max_reuse_distance at or above P they stay), gradients are
       reduced to their owner (P)

times (n - 1) / n each. The paper (arXiv 1910.02054, section 7) has 2P, 2P, 2P and 3P: its stages 1
and 2 reduce to the owner, once a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lert_ds.plan.network import Network
from lert_ds.plan.workload import GRADIENT_BYTES, WEIGHT_BYTES, Workload

STAGE_0_BUCKET_ELEMENTS = 5e8
"""Of an all-reduce at stage 0 (MEMORY_OPT_ALLREDUCE_SIZE)."""
WEIGHT_GROUPS = 2
"""All-gathers of weights a step: parameters that decay, and those that do not."""
SMALL_MESSAGES = 3
"""All-reduces of single numbers a step: the norm, an overflow, who wants to stop."""


@dataclass(frozen=True)
class Communication:
    """Of one step of one process."""

    gradient_seconds: float
    weight_seconds: float
    exposed_seconds: float
    """Of both, those in which the device waits."""
    sent_bytes: float
    """By each process."""


def behind(seconds: float, pieces: Sequence[float]) -> float:
    """Return how long after a computation of `seconds` the last piece is sent.

    Piece i of k is ready when i / k of the computation is done, and one goes after the other.
    """
    end = 0.0
    for number, piece in enumerate(pieces, 1):
        end = max(end, seconds * number / len(pieces)) + piece
    return max(0.0, end - seconds)


def ahead(seconds: float, pieces: Sequence[float]) -> float:
    """Return how much longer a computation of `seconds` takes that waits for each piece in turn."""
    come = done = 0.0
    for piece in pieces:
        come += piece
        done = max(done, come) + seconds / len(pieces)
    return max(0.0, done - seconds)


def buckets(elements: float, largest: float) -> list[float]:
    """Return the elements of each message: full ones, and what is left."""
    whole, rest = divmod(elements, largest)
    return [largest] * int(whole) + ([rest] if rest else [])


def communication(
    work: Workload, network: Network, forward: float, backward: float, *, overlaps: bool
) -> Communication:
    """Return what one step communicates.

    Args:
        work: One process's part of the step.
        network: What joins the processes.
        forward: Seconds of a micro-batch's forward pass.
        backward: The same, backward.
        overlaps: Whether the device sends beside its computation.
    """
    if network.gpus == 1:
        return Communication(0.0, 0.0, 0.0, 0.0)
    stage = work.zero.stage
    small = network.all_reduce(8.0 * SMALL_MESSAGES, SMALL_MESSAGES)
    each = (network.gpus - 1) / network.gpus * work.parameters
    gradient, weight = GRADIENT_BYTES[work.precision], WEIGHT_BYTES[work.precision]
    if stage == 0:
        pieces = [
            network.all_reduce(gradient * size)
            for size in buckets(work.parameters, STAGE_0_BUCKET_ELEMENTS)
        ]
        time = sum(pieces) + small
        return Communication(time, 0.0, time, 2 * each * gradient)
    beside = overlaps and work.zero.overlap
    if stage == 3:
        return _stage_3(work, network, forward, backward, small, beside)
    reduce: Callable[[float], float] = network.all_gather
    if work.zero.whole_all_reduce:
        reduce = network.all_reduce
    pieces = [
        reduce(gradient * size) for size in buckets(work.parameters, work.zero.bucket_elements)
    ]
    times = work.accumulation if stage == 2 else 1
    gather = network.all_gather(weight * work.parameters, WEIGHT_GROUPS)
    shown = times * (behind(backward, pieces) if beside else sum(pieces))
    sent = times * (2 if work.zero.whole_all_reduce else 1) * gradient + weight
    return Communication(times * sum(pieces) + small, gather, shown + gather + small, each * sent)


def _stage_3(
    work: Workload,
    network: Network,
    forward: float,
    backward: float,
    small: float,
    beside: bool,
) -> Communication:
    gradient, weight = GRADIENT_BYTES[work.precision], WEIGHT_BYTES[work.precision]
    fetched = [
        network.all_gather(weight * size)
        for size in buckets(work.parameters, work.zero.prefetch_elements)
    ]
    reduced = [
        network.all_gather(gradient * size)
        for size in buckets(work.parameters, work.zero.bucket_elements)
    ]
    kept = work.parameters <= work.zero.reuse_elements and not work.checkpointing
    # The backward pass shares its links between the weights that come and the gradients that go.
    both = sum(reduced) + (0.0 if kept else sum(fetched))
    fetches = 1 if kept else 2
    if beside:
        stretched = [piece * both / sum(reduced) for piece in reduced]
        shown = ahead(forward, fetched) + behind(backward, stretched)
    else:
        shown = sum(fetched) + both
    times = work.accumulation
    each = (network.gpus - 1) / network.gpus * work.parameters
    return Communication(
        times * sum(reduced) + small,
        times * fetches * sum(fetched),
        times * shown + small,
        times * each * (fetches * weight + gradient),
    )
