"""What a profiler saw, added up by the kind of work."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Looked for in this order; the first that a name matches is its kind.
_KINDS = {
    "gradient sync": r"nccl|gloo|all_?reduce|reduce_scatter|all_?gather|broadcast|c10d|shm_comm",
    "loss": r"cross_entropy|log_softmax|nll_loss|argmax|logsumexp",
    "attention": r"flash|fmha|attention|softmax_warp|_softmax|aten::bmm|scaled_dot",
    "optimizer": r"adam|lamb|lion|multi_tensor|foreach",
    "matrix products": (
        r"gemm|aten::mm$|addmm|cutlass|nvjet|xmma|cublas|aten::linear|mkldnn|splitk|wgmma|_scaled_mm"
    ),
    "copies": r"memcpy|memset|copy_|_to_copy|aten::(cat|stack|fill_|zero_)|CatArray",
    "element-wise": r".",
}
KINDS = tuple(_KINDS)
LONGEST = 15


def kind_of(name: str) -> str:
    """Return the kind of work of an operation or a GPU kernel by its name."""
    return next(kind for kind, pattern in _KINDS.items() if re.search(pattern, name, re.IGNORECASE))


class Seen(NamedTuple):
    """What a profiler saw, as shares of the time of all operations."""

    kinds: dict[str, float]
    """Kind of work to its share."""
    longest: list[tuple[str, float]]
    """Names and shares of the operations or kernels that took most."""


def look(steps: Callable[[], object], device: torch.device, trace: Path | None = None) -> Seen:
    """Run `steps` under the profiler and return where their time went.

    Args:
        steps: What to look at, after a warm-up.
        device: Where it computes: on a GPU its kernels count, else the operations themselves.
        trace: File to write a Chrome trace to (chrome://tracing, Perfetto).
    """
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as seen:
        steps()
        if is_cuda:
            torch.cuda.synchronize()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        seen.export_chrome_trace(str(trace))
    times: dict[str, float] = {}
    for event in seen.key_averages():
        on_cuda = event.device_type == DeviceType.CUDA
        if is_cuda and on_cuda and not event.is_user_annotation:
            times[event.key] = times.get(event.key, 0.0) + event.self_device_time_total
        elif not is_cuda:
            times[event.key] = times.get(event.key, 0.0) + event.self_cpu_time_total
    total = sum(times.values()) or 1.0
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, value in times.items():
        kinds[kind_of(name)] += value / total
    longest = sorted(times, key=lambda name: -times[name])[:LONGEST]
    return Seen(
        {kind: share for kind, share in kinds.items() if share},
        [(name, times[name] / total) for name in longest],
    )
