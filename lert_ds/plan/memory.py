"""Whether a training fits a device, and how many instances a micro-batch may have."""

from dataclasses import dataclass

from lert_ds import arithmetic
from lert_ds.kernels.linear_cross_entropy import PIECE_BYTES
from lert_ds.plan.hardware import GIB, Device
from lert_ds.plan.workload import GRADIENT_BYTES, WEIGHT_BYTES, Workload

RESERVED_BYTES = 1.5 * GIB
"""The device's context, libraries and their communication buffers. Assumed."""
FRAGMENTED_SHARE = 0.05
"""Of the memory, lost between blocks of an allocator. Assumed."""


@dataclass(frozen=True)
class Fit:
    """Bytes of one process on its device."""

    states: arithmetic.Memory
    """By the formulas of `arithmetic.memory_per_process`."""
    matrices: float
    """Of attention that keeps its probabilities, and of the pieces of logits of a fused loss."""
    buffers: float
    """Of communication: reduce buckets, and at stage 3 the weights that are gathered."""
    update: float
    """Gradients in fp32 while the weights are updated, when the activations are gone."""
    usable: float
    """Of the device, less what is reserved."""

    @property
    def peak(self) -> float:
        """Return the most there is at once: in the backward pass, or in the update."""
        states = self.states.weights + self.states.gradients + self.states.optimizer
        return states + self.buffers + max(self.states.activations + self.matrices, self.update)

    @property
    def fits(self) -> bool:
        """Return whether the device holds it."""
        return self.peak <= self.usable


def usable_bytes(device: Device) -> float:
    """Return what a training may take of a device's memory."""
    reserved = RESERVED_BYTES if device.overlaps else 0.0
    return device.memory_bytes * (1 - FRAGMENTED_SHARE) - reserved


def fit(work: Workload, device: Device) -> Fit:
    """Return the memory of one process of `work` on `device`."""
    states = arithmetic.memory_per_process(
        work.shape,
        work.parameters,
        stage=work.zero.stage,
        precision=work.precision,
        processes=work.processes,
        micro_batch_size=work.micro_batch_size,
        length=work.length,
        masked_share=0.0 if work.fused_loss else work.masked_share,
        checkpointing=work.checkpointing,
        offload_optimizer=work.offload_optimizer,
        offload_parameters=work.offload_parameters,
    )
    shared = work.processes > 1
    # Adam's share of the gradient, cast to fp32 (in fp32 it is the gradient itself).
    mixed = work.precision in ("bf16", "fp16") and not work.offload_optimizer
    own = work.parameters / (work.processes if work.zero.stage >= 1 else 1)
    return Fit(
        states=states,
        matrices=_attention_matrices(work, device) + (2 * PIECE_BYTES if work.fused_loss else 0),
        buffers=_buffers(work) if shared else 0.0,
        update=4 * own if mixed else 0.0,
        usable=usable_bytes(device),
    )


def _attention_matrices(work: Workload, device: Device) -> float:
    """Return the bytes of probabilities, scores and masks that attention keeps, where it does.

    Out of plain kernels 2.5 elements a pair (probabilities, those left, and a mask); a processor
    with this project's attention keeps the probabilities alone.
    """
    if work.fused_attention and device.fused_attention:
        return 0.0
    element = 4 if work.precision == "fp32" else 2
    kept = element if device.attention_flops is not None else 2 * element + 1
    layers = 1 if work.checkpointing else work.shape.layers
    return layers * work.micro_batch_size * work.heads * work.length**2 * kept


def _buffers(work: Workload) -> float:
    zero, gradient = work.zero, GRADIENT_BYTES[work.precision]
    bucket = min(zero.bucket_elements, work.parameters)
    if zero.stage == 0:
        return gradient * work.parameters  # flattened for the all-reduce
    size = gradient * bucket * (2 if zero.overlap else 1)
    if zero.stage == 3:
        size += WEIGHT_BYTES[work.precision] * min(work.parameters, zero.reuse_elements)
    return size


def largest_micro_batch(work: Workload, device: Device) -> int | None:
    """Return the largest micro-batch that fits and divides a process's share; None if none does."""
    share = work.micro_batch_size * work.accumulation
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    return next((s for s in sizes if fit(work.with_micro_batch(s), device).fits), None)
