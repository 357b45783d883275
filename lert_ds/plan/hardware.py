"""What a processor can do: makers' data sheets, times the share of them that programs reach.

Data sheets (dense rates, without sparsity): NVIDIA V100 (SXM2, 32 GB), A100 (SXM4, 40 and 80 GB),
H100 (SXM5), H200 (SXM), HGX B200 (an eighth of the board), L40S, and "Ada GPU architecture" for the
GeForce RTX 4090. NVLink and PCIe count one direction, half of what a data sheet adds up.

What programs reach is in `Rates`; each share says below where it is from. "Assumed" means that no
measurement stands behind it; `docs/plan.md` shows how far the whole is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lert_ds.errors import ConfigError

TERA, GIGA, GIB = 1e12, 1e9, 2.0**30

MATRIX_OF = {"fp32": "fp32", "fp16": "half", "bf16": "half", "autocast": "half", "fp8": "fp8"}
"""Precision of a training to the rate of a data sheet that its matrix products have."""


@dataclass(frozen=True)
class Rates:
    """Which share of its data sheet a device reaches, and what its programs cost besides."""

    matrix: float = 0.80
    """Of the peak, by a product of 8192 × 8192 × 8192."""
    inner_half: float = 192.0
    """Inner size at which a product has half of its full rate: the rate goes as k / (k + this). A
    tile of the result has a start and an end that cost as much as so many steps of its inner loop.
    Assumed for GPUs."""
    attention: float = 0.25
    """Of the peak, by fused attention, forward and backward, heads of 64, instances of 512."""
    memory: float = 0.90
    """Of the memory's bandwidth, by a kernel that only reads and writes."""
    sustained: float = 0.85
    """Of the rate of a product alone, by the products of a training step: clocks fall under load.
    With `elements` fitted to published trainings on one V100 or A100 (`docs/plan.md`)."""
    elements: float = 0.47
    """Of `memory`, by norms, activations, dropout and softmax."""
    link: float = 0.80
    """Of the bandwidth to the other devices of a node, by a long ring all-reduce."""
    launch_seconds: float = 6e-6
    """Of the host's time to start one kernel out of PyTorch. Assumed."""
    step_seconds: float = 5e-3
    """Of the host's time a step for what is none of the kernels (hooks, norms, waits). Assumed."""


@dataclass(frozen=True)
class Device:
    """A processor that trains: its data sheet, and what is reached of it."""

    name: str
    flops: Mapping[str, float]
    """Peak operations a second of a product: `half` (fp16 and bf16), `fp32`, perhaps `fp8`."""
    memory_bytes: float
    bytes_per_second: float
    """To and from its memory, reads and writes together."""
    link_bytes_per_second: float
    """To the other devices of its node, one direction."""
    host_bytes_per_second: float
    """To its host, one direction."""
    link_name: str = "NVLink"
    has_bf16: bool = True
    overlaps: bool = True
    """Whether communication goes on beside computation; on a CPU under gloo it does not."""
    fused_attention: bool = True
    """Whether attention with dropout keeps no matrix [length, length]."""
    rates: Rates = field(default_factory=Rates)
    element_bytes_per_second: float | None = None
    """Reached by norms, activations and dropout, where they are no matter of memory alone (CPU)."""
    attention_flops: float | None = None
    """Reached by attention with all it does between its products, where that was measured."""
    collective_seconds: float = 20e-6
    """To start one collective. Assumed for GPUs."""

    def peak_flops(self, precision: str) -> float:
        """Return the operations a second of the data sheet.

        Raises:
            ConfigError: the device does not have that precision.
        """
        kind = MATRIX_OF[precision]
        if kind not in self.flops:
            raise ConfigError(f"{self.name}: its rate in {precision} is not known")
        return self.flops[kind]

    def matrix_flops(self, precision: str, inner: float) -> float:
        """Return the operations a second of a product with an inner size of `inner`.

        `peak · share · (k / (k + k½)) / (8192 / (8192 + k½))`: the share was measured at 8192.
        """
        half = self.rates.inner_half
        full = 8192 / (8192 + half)
        return self.peak_flops(precision) * self.rates.matrix * (inner / (inner + half)) / full

    def memory_rate(self) -> float:
        """Return the bytes a second that a kernel reaches which only reads and writes."""
        return self.bytes_per_second * self.rates.memory

    def element_rate(self) -> float:
        """Return the bytes a second that element-wise kernels reach."""
        return self.element_bytes_per_second or self.memory_rate() * self.rates.elements

    def link_rate(self) -> float:
        """Return the bytes a second, one direction, to the other devices of the node."""
        return self.link_bytes_per_second * self.rates.link


def _gpu(
    name: str,
    half: float,
    fp32: float,
    gib: float,
    gbytes: float,
    link: float,
    host: float,
    fp8: float = 0.0,
    **more: object,
) -> Device:
    flops = {"half": half * TERA, "fp32": fp32 * TERA} | ({"fp8": fp8 * TERA} if fp8 else {})
    return Device(
        name=name,
        flops=MappingProxyType(flops),
        memory_bytes=gib * GIB,
        bytes_per_second=gbytes * GIGA,
        link_bytes_per_second=link * GIGA,
        host_bytes_per_second=host * GIGA,
        **more,  # type: ignore[arg-type]
    )


# matrix: measured 790 of 989 TFLOP/s (H100 and H200); A100 267.9 of 312 and B200 1745 of 2250 from
# the table "Maximum Achievable Matmul FLOPS" of stas00/ml-engineering; V100 101 of 112 (PCIe,
# 8192³, NVIDIA developer forum, topic 79781).
# memory: measured, a copy, 3.0 of 3.35 TB/s (H100), 4.3 of 4.8 TB/s (H200); elsewhere assumed.
# attention: FlashAttention-2 reaches at most 73 % of an A100 and 35 % of an H100 on long instances
# (arXiv 2307.08691, 2407.08608); less at 512 with heads of 64 and dropout: half of the first, two
# thirds of the second, assumed. B200 and Ada assumed.
# link: assumed; PCIe has no direct way between two GeForce cards.
_HOPPER = Rates(matrix=790 / 989, memory=3.0 / 3.35, attention=0.25)
GPUS: dict[str, Device] = {
    "v100": _gpu("v100", 125, 15.7, 32, 900, 150, 16, has_bf16=False,
                 rates=Rates(matrix=0.90, attention=0.25)),
    "a100-40": _gpu("a100-40", 312, 19.5, 40, 1555, 300, 32,
                    rates=Rates(matrix=267.9 / 312, attention=0.35)),
    "a100-80": _gpu("a100-80", 312, 19.5, 80, 2039, 300, 32,
                    rates=Rates(matrix=267.9 / 312, attention=0.35)),
    "h100": _gpu("h100", 989, 67, 80, 3350, 450, 64, 1979, rates=_HOPPER),
    "h200": _gpu("h200", 989, 67, 141, 4800, 450, 64, 1979, rates=_HOPPER),
    "b200": _gpu("b200", 2250, 75, 180, 8000, 900, 64, 4500,
                 rates=Rates(matrix=1745 / 2250, attention=0.20)),
    "l40s": _gpu("l40s", 362, 91.6, 48, 864, 32, 32, 733, link_name="PCIe 4",
                 rates=Rates(matrix=0.75, attention=0.35, link=0.6)),
    "rtx4090": _gpu("rtx4090", 165.2, 82.6, 24, 1008, 32, 32, 330, link_name="PCIe 4, by the host",
                    rates=Rates(matrix=0.90, attention=0.5, link=0.35)),
}  # fmt: skip
"""Name, as `--gpu` takes it, to the device."""

CPU = "cpu"
CUSTOM = "custom"


def known(name: str) -> Device:
    """Return the GPU that `name` stands for.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    if name in GPUS:
        return GPUS[name]
    raise ConfigError(
        f"--gpu {name}: not known; choose {', '.join(GPUS)}, {CPU} (measured here), or {CUSTOM} "
        "with --peak-tflops, --memory-gib and --memory-bandwidth-gbytes"
    )


def custom(
    peak_tflops: float | None,
    memory_gib: float | None,
    bandwidth_gbytes: float | None,
    link_gbytes: float = 32.0,
) -> Device:
    """Return a device of which only a data sheet is known; its shares are those of `Rates`.

    Args:
        peak_tflops: Dense, in fp16 and bf16; a sixteenth of it is taken for fp32.
        memory_gib: Of its memory.
        bandwidth_gbytes: Of its memory, GB/s.
        link_gbytes: To the others of its node, GB/s, one direction.

    Raises:
        ConfigError: a number is missing or not above 0.
    """
    given = {
        "--peak-tflops": peak_tflops,
        "--memory-gib": memory_gib,
        "--memory-bandwidth-gbytes": bandwidth_gbytes,
        "--link-gbytes": link_gbytes,
    }
    for flag, value in given.items():
        if value is None:
            raise ConfigError(f"--gpu {CUSTOM} needs {flag}")
        if not 0 < value < float("inf"):
            raise ConfigError(f"{flag} {value:g}: must be above 0")
    assert peak_tflops is not None
    assert memory_gib is not None
    assert bandwidth_gbytes is not None
    return _gpu(
        CUSTOM, peak_tflops, peak_tflops / 16, memory_gib, bandwidth_gbytes, link_gbytes,
        min(link_gbytes, 64.0), link_name="link",
    )  # fmt: skip
