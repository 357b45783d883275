"""One training step: what it takes, by what it goes into, and what follows for a whole run."""

from dataclasses import dataclass

from lert_ds import arithmetic
from lert_ds.plan.communication import Communication, communication
from lert_ds.plan.compute import passes
from lert_ds.plan.hardware import Device
from lert_ds.plan.network import Network
from lert_ds.plan.workload import (
    GRADIENT_BYTES,
    MASKING_SECONDS_PER_TOKEN,
    WEIGHT_BYTES,
    Workload,
)

HOST_UPDATE_BYTES_PER_SECOND = 20e9
"""Of the host's memory, for one process's Adam under offload. Assumed."""
STAGE_3_LAUNCHES = 2.0
"""ZeRO-3's hooks around every module, as times the host's work without them. Assumed."""

_STATE = {"adamw": 2, "lamb": 2, "lion": 1}


@dataclass(frozen=True)
class Step:
    """Seconds of one step; they add up to `seconds`."""

    matrix: float
    attention: float
    elements: float
    head: float
    communication: float
    """What of it is not hidden."""
    optimizer: float
    launch: float
    """The device waits for its host, which starts kernels; and the host's part of a step."""
    data: float
    """The step waits for instances that are masked."""
    sent: Communication
    """All that is communicated, hidden or not."""

    @property
    def compute(self) -> float:
        """Return the seconds of the passes forward and backward."""
        return self.matrix + self.attention + self.elements + self.head

    @property
    def seconds(self) -> float:
        """Return the whole step."""
        return self.compute + self.communication + self.optimizer + self.launch + self.data


def optimizer_bytes(work: Workload) -> float:
    """Return the bytes of memory traffic that one parameter's update takes.

    Moments and fp32 weights are read and written, the gradient is read four times (update, norm,
    check, and written once by the clipping), and cast from and to 16 bits where there are such.
    """
    moments = 8 * _STATE[work.optimizer]
    norms = 16 if work.optimizer == "lamb" else 0
    casts = 12 if work.precision in ("bf16", "fp16") else 0
    return moments + 8 + 4 * 4 + casts + norms


def _optimizer(work: Workload, device: Device) -> float:
    own = work.parameters / (work.processes if work.zero.stage >= 1 else 1)
    if not work.offload_optimizer:
        return own * optimizer_bytes(work) / device.memory_rate()
    there_and_back = GRADIENT_BYTES[work.precision] + WEIGHT_BYTES[work.precision]
    update = optimizer_bytes(work) / HOST_UPDATE_BYTES_PER_SECOND
    return own * (there_and_back / device.host_bytes_per_second + update)


def _from_host(work: Workload, device: Device) -> float:
    """Return the seconds a micro-batch waits for weights that are kept on the host."""
    if not work.offload_parameters:
        return 0.0
    size = 2 * WEIGHT_BYTES[work.precision] * work.parameters / work.processes
    return size / device.host_bytes_per_second


def estimate(work: Workload, device: Device, network: Network) -> Step:
    """Return what a step of `work` takes on each of the devices of `network`."""
    there, back = passes(work, device)
    times = work.accumulation
    micro = there.seconds + back.seconds
    hooks = STAGE_3_LAUNCHES if work.zero.stage == 3 else 1.0
    host = hooks * device.rates.launch_seconds * (there.kernels + back.kernels)
    if work.cuda_graphs:
        idle = 0.0
    elif device.overlaps:
        idle = max(0.0, host - micro)  # the host runs ahead of the device
    else:
        idle = host
    masking = MASKING_SECONDS_PER_TOKEN * work.tokens
    if work.data_workers:
        masking = max(0.0, masking / work.data_workers - micro - idle)
    stretched = (micro + idle) / micro  # kernels that come late leave more room beside them
    sent = communication(
        work, network, there.seconds * stretched, back.seconds * stretched, overlaps=device.overlaps
    )
    return Step(
        matrix=times * (there.matrix + back.matrix),
        attention=times * (there.attention + back.attention),
        elements=times * (there.elements + back.elements),
        head=times * (there.head + back.head),
        communication=sent.exposed_seconds + times * _from_host(work, device),
        optimizer=_optimizer(work, device),
        launch=times * idle + (0.0 if work.cuda_graphs else device.rates.step_seconds),
        data=times * masking,
        sent=sent,
    )


@dataclass(frozen=True)
class Throughput:
    """What a step's seconds mean."""

    tokens_per_second: float
    """Of all devices."""
    mfu: float
    """Model operations over the data sheet's peak of all devices."""
    matrix_share: float
    """The same over what a large product reaches: the MFU that a training reports."""

    @classmethod
    def of(cls, work: Workload, device: Device, step: Step) -> "Throughput":
        """Return the throughput of a step."""
        tokens = work.batch_size * work.length
        flops = arithmetic.flops_per_token(work.shape, work.length, work.masked_share)
        rate = tokens * flops / step.seconds / work.processes
        return cls(
            tokens / step.seconds,
            rate / device.peak_flops(work.product_precision),
            rate / device.matrix_flops(work.product_precision, 8192),
        )
