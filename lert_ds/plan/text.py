"""A plan as text for people and as JSON for machines."""

from dataclasses import asdict, dataclass
from typing import Any

from lert_ds.plan.hardware import GIB, Device
from lert_ds.plan.memory import Fit
from lert_ds.plan.network import Network
from lert_ds.plan.step import Step, Throughput
from lert_ds.plan.workload import Workload
from lert_ds.text_table import markdown_table

DAY = 86_400.0


@dataclass(frozen=True)
class PhasePlan:
    """Steps of a run that are alike."""

    steps: int
    batch_size: int
    """Rows a step."""
    length: int
    """Tokens a row."""
    seconds: float
    """Of one step."""


@dataclass(frozen=True)
class Plan:
    """What is said of one training on one number of devices."""

    work: Workload
    device: Device
    network: Network
    fit: Fit
    largest_micro_batch: int | None
    step: Step
    throughput: Throughput
    phases: tuple["PhasePlan", ...]
    """Of the whole run; the last one has the full batch, which `step` is of."""
    price: float | None = None
    """Of a device's hour, in whatever currency."""

    @property
    def steps(self) -> int:
        """Return the steps of the run."""
        return sum(phase.steps for phase in self.phases)

    @property
    def days(self) -> float:
        """Return the days to the last step, without evaluations, checkpoints and pauses."""
        return sum(phase.steps * phase.seconds for phase in self.phases) / DAY

    @property
    def gpu_hours(self) -> float:
        """Return the hours of all devices together."""
        return self.days * 24 * self.work.processes


def as_tree(plan: Plan) -> dict[str, Any]:
    """Return the numbers of a plan, in seconds, bytes and bytes a second."""
    work, step, fit = plan.work, plan.step, plan.fit
    parts = asdict(step)
    sent = parts.pop("sent")
    tree = {
        "gpu": plan.device.name,
        "gpus": work.processes,
        "gpus_per_node": plan.network.per_node,
        "batch_size": work.batch_size,
        "micro_batch_size": work.micro_batch_size,
        "accumulation": work.accumulation,
        "length": work.length,
        "parameters": work.parameters,
        "precision": work.precision,
        "zero_stage": work.zero.stage,
        "memory_bytes": {
            **asdict(fit.states),
            "attention_matrices": fit.matrices,
            "communication_buffers": fit.buffers,
            "update": fit.update,
            "peak": fit.peak,
            "usable": fit.usable,
        },
        "fits": fit.fits,
        "largest_micro_batch_size": plan.largest_micro_batch,
        "step_seconds": {**parts, "total": step.seconds},
        "communication": sent,
        "tokens_per_second": plan.throughput.tokens_per_second,
        "mfu": plan.throughput.mfu,
        "share_of_matrix_rate": plan.throughput.matrix_share,
        "phases": [asdict(phase) for phase in plan.phases],
        "steps": plan.steps,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
    }
    if plan.price is not None:
        tree["cost"] = plan.gpu_hours * plan.price
    return tree


def describe(plan: Plan) -> str:
    """Return a plan as lines of name and number."""
    rows = [*_where(plan), *_memory(plan), *_time(plan), *_whole(plan)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _where(plan: Plan) -> list[tuple[str, str]]:
    work, network, device = plan.work, plan.network, plan.device
    joined = ""
    if work.processes > 1:
        joined = f", joined by {device.link_name} at {network.within / 1e9:.3g} GB/s"
    if network.nodes > 1:
        joined += f", {network.nodes} nodes by {network.between / 1e9:.3g} GB/s each"
    many = "s" if work.processes > 1 else ""
    return [
        ("machine", f"{work.processes} {device.name} process{'es' if many else ''}{joined}"),
        (
            "batch",
            f"{work.batch_size:,} instances of {work.length} = {work.micro_batch_size} a "
            f"micro-batch × {work.accumulation} accumulated × {work.processes}",
        ),
        (
            "precision",
            f"{work.precision}{', products in fp8' if work.fp8 else ''}, ZeRO stage "
            f"{work.zero.stage}, kernels {'fused' if work.fused_kernels else 'plain'}",
        ),
    ]


def _memory(plan: Plan) -> list[tuple[str, str]]:
    fit, states = plan.fit, plan.fit.states
    parts = [
        ("weights", states.weights),
        ("gradients", states.gradients),
        ("optimizer", states.optimizer),
        ("activations", states.activations + fit.matrices),
        ("communication", fit.buffers),
    ]
    told = " + ".join(f"{name} {size / GIB:.2f}" for name, size in parts)
    host = f"; on the host {states.host / GIB:.2f}" if states.host else ""
    verdict = "fits" if fit.fits else "DOES NOT FIT"
    largest = plan.largest_micro_batch
    return [
        ("memory", f"{fit.peak / GIB:.2f} GiB at the peak: {told}{host}"),
        ("", f"{verdict} in the {fit.usable / GIB:.1f} GiB that a training may take"),
        (
            "micro-batch",
            "none fits: a higher ZeRO stage, train.gradient_checkpointing=true or offload"
            if largest is None
            else f"{largest} is the largest that fits and divides a process's share",
        ),
    ]


def _time(plan: Plan) -> list[tuple[str, str]]:
    step = plan.step
    sent = step.sent.gradient_seconds + step.sent.weight_seconds

    def share(seconds: float) -> str:
        return f"{seconds * 1e3:,.1f} ms, {seconds / step.seconds:.1%}"

    return [
        ("a step", f"{step.seconds * 1e3:,.1f} ms"),
        ("  products", share(step.matrix)),
        ("  attention", share(step.attention)),
        ("  element-wise", share(step.elements)),
        ("  heads", share(step.head)),
        (
            "  communication",
            f"{share(step.communication)} exposed, of {sent * 1e3:,.1f} ms: gradients "
            f"{step.sent.gradient_seconds * 1e3:,.1f}, weights "
            f"{step.sent.weight_seconds * 1e3:,.1f}; {step.sent.sent_bytes / 1e9:.3g} GB a process",
        ),
        ("  optimizer", share(step.optimizer)),
        ("  host", share(step.launch)),
        ("  data", share(step.data)),
    ]


def _whole(plan: Plan) -> list[tuple[str, str]]:
    speed = plan.throughput
    rows = [
        ("throughput", f"{speed.tokens_per_second:,.0f} tokens/s"),
        (
            "MFU",
            f"{speed.mfu:.1%} of the peak, {speed.matrix_share:.1%} of what large products reach",
        ),
        (
            "to the end",
            f"{plan.steps:,} steps: {plan.days:,.1f} days, {plan.gpu_hours:,.0f} GPU-hours",
        ),
    ]
    if len(plan.phases) > 1:
        rows += [
            (
                "  of these",
                f"{phase.steps:,} of {phase.batch_size:,} × {phase.length}: "
                f"{phase.seconds * 1e3:,.1f} ms each",
            )
            for phase in plan.phases
        ]
    if plan.price is not None:
        rows.append(("cost", f"{plan.gpu_hours * plan.price:,.0f}"))
    return rows


def table(plans: list[Plan]) -> str:
    """Return plans of one training on more and more devices, beside the first."""
    first = plans[0]
    head = [
        "GPUs", "micro-batch", "GiB", "step, ms", "exposed", "tokens/s", "scaling", "MFU", "days",
        "GPU-hours",
    ]  # fmt: skip
    if first.price is not None:
        head.append("cost")
    rows = [head]
    for plan in plans:
        more = plan.work.processes / first.work.processes
        speed = plan.throughput.tokens_per_second / first.throughput.tokens_per_second
        row = [
            f"{plan.work.processes:,}",
            f"{plan.work.micro_batch_size} × {plan.work.accumulation}",
            f"{plan.fit.peak / GIB:.1f}" + ("" if plan.fit.fits else " (too much)"),
            f"{plan.step.seconds * 1e3:,.1f}",
            f"{plan.step.communication / plan.step.seconds:.1%}",
            f"{plan.throughput.tokens_per_second:,.0f}",
            f"{speed / more:.1%}",
            f"{plan.throughput.mfu:.1%}",
            f"{plan.days:,.1f}",
            f"{plan.gpu_hours:,.0f}",
        ]
        if plan.price is not None:
            row.append(f"{plan.gpu_hours * plan.price:,.0f}")
        rows.append(row)
    return "\n".join(markdown_table(rows))
