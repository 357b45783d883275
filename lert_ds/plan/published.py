"""Trainings whose speed others have published, and what the model says of each.

    DeepSpeed 2020   "Microsoft DeepSpeed achieves the fastest BERT training time" and the BERT
                     pre-training tutorial (docs/_posts/2020-05-28-fastest-bert-training.md and
                     docs/_tutorials/bert-pretraining.md of deepspeedai/DeepSpeed)
    NVIDIA 2020      DeepLearningExamples, PyTorch/LanguageModeling/BERT/README.md, "Training
                     performance results", container 20.06 (commit 04988752)
    NVIDIA 2022      the same, container 21.11 (commit a07d20a1); length 128 alone, since from then
                     on rows of the second phase are padded to a multiple of 64 and not to 512
    MosaicML 2023    examples/benchmarks/bert/README.md of mosaicml/examples, and arXiv 2312.17482:
                     70,000 steps of 4096 × 128 in 11.5 hours
    MLPerf 4.0       NVIDIA/results/*/bert/result_0…9.txt of mlcommons/training_results_v4.0, the
                     mean of the last `throughput`; it counts sequences, two a packed row of 512

Every one is BERT-large (24 layers, vocabulary 30,522) but MosaicML's, which is BERT-base.
"""

from dataclasses import dataclass, replace

from lert_ds.arithmetic import Shape
from lert_ds.plan.hardware import known
from lert_ds.plan.network import network_of
from lert_ds.plan.step import Throughput, estimate
from lert_ds.plan.workload import Workload, ZeroSettings

LARGE, BASE = Shape(24, 1024, 1024, 4096, 30_522), Shape(12, 768, 768, 3072, 30_522)


@dataclass(frozen=True)
class Point:
    """A training, where it ran, and how fast."""

    source: str
    name: str
    gpu: str
    per_node: int
    interconnect: str | None
    work: Workload
    measured: float
    """Rows (instances) a second, of all devices."""

    @property
    def predicted(self) -> float:
        """Return what the model says of it."""
        device = known(self.gpu)
        network = network_of(device, self.work.processes, self.per_node, self.interconnect)
        step = estimate(self.work, device, network)
        return Throughput.of(self.work, device, step).tokens_per_second / self.work.length

    @property
    def error(self) -> float:
        """Return how much faster the model says it is, as a share of what was measured."""
        return self.predicted / self.measured - 1


def _work(length: int, micro: int, accumulation: int, processes: int) -> Workload:
    """Return BERT-large in fp16 under LAMB without ZeRO, attention by matrices."""
    return Workload(
        shape=LARGE, heads=16, parameters=336_000_000, length=length, masked_share=20 / 128,
        micro_batch_size=micro, accumulation=accumulation, processes=processes, precision="fp16",
        zero=ZeroSettings(), optimizer="lamb", fused_attention=False,
    )  # fmt: skip


def _fused(work: Workload) -> Workload:
    """Return the same in kernels of somebody's own."""
    return replace(work, fused_kernels=True, fused_qkv=True)


def _deepspeed() -> list[Point]:
    single = {128: (64, 272.0), 512: (8, 52.0)}
    return [
        Point("DeepSpeed 2020", f"1 V100, length {length}", "v100", 16, None,
              _fused(_work(length, micro, 10, 1)), measured)
        for length, (micro, measured) in single.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class Record:
    """DeepSpeed's whole pre-training: 403 M instances of 128, then 20 M of 512 (18 to 22 M)."""

    gpus: int
    measured_minutes: float

    @property
    def predicted_minutes(self) -> float:
        """Return what the model says of it, on DGX-2 nodes of 16 and 8 ports of 100 Gbit/s."""
        device = known("v100")
        network = network_of(device, self.gpus, 16, "8x100gbit")
        seconds = 0.0
        for length, micro, batch, instances in (
            (128, 64, 65_536, 403e6),
            (512, 8, 32_768, 20e6),
        ):
            accumulation = batch // (micro * self.gpus)
            work = _fused(_work(length, micro, accumulation, self.gpus))
            seconds += instances / batch * estimate(work, device, network).seconds
        return seconds / 60


RECORDS = (
    Record(16, 33 * 60 + 13),
    Record(64, 8 * 60 + 41),
    Record(256, 144),
    Record(1024, 44),
)


def _nvidia() -> list[Point]:
    rows = [
        # year, GPU, GPUs, a node, interconnect, length, micro-batch, accumulation, measured
        (2020, "a100-40", 1, 8, None, 128, 64, 1024, 415),
        (2020, "a100-40", 8, 8, None, 128, 64, 128, 3231),
        (2020, "a100-40", 1, 8, None, 512, 16, 2048, 78),
        (2020, "a100-40", 8, 8, None, 512, 16, 256, 620),
        (2020, "v100", 1, 16, None, 128, 16, 4096, 173),
        (2020, "v100", 16, 16, None, 128, 16, 256, 2557),
        (2020, "v100", 1, 16, None, 512, 4, 8192, 36),
        (2020, "v100", 16, 16, None, 512, 4, 512, 551),
        (2022, "a100-80", 1, 8, None, 128, 256, 32, 580),
        (2022, "a100-80", 8, 8, None, 128, 256, 32, 4591),
        (2022, "a100-80", 64, 8, "8x200gbit", 128, 256, 4, 35_774),
        (2022, "a100-80", 256, 8, "8x200gbit", 128, 256, 1, 138_294),
        (2022, "v100", 1, 8, None, 128, 64, 64, 224),
        (2022, "v100", 8, 8, None, 128, 64, 64, 1746),
    ]
    return [
        Point(f"NVIDIA {year}", f"{gpus} {gpu.upper()}, length {length}", gpu, node, join,
              _work(length, micro, times, gpus), measured)
        for year, gpu, gpus, node, join, length, micro, times, measured in rows
    ]  # fmt: skip


def _mosaic() -> Point:
    """Return Hugging Face's BERT-base: autocast, logits at every position."""
    work = replace(
        _work(128, 128, 4, 8), shape=BASE, heads=12, parameters=110_000_000, masked_share=1.0,
        precision="autocast", optimizer="adamw",
    )  # fmt: skip
    measured = 70_000 * 4096 / (11.5 * 3600)
    return Point("MosaicML 2023", "8 A100-80, BERT-base, 128", "a100-80", 8, None, work, measured)


def _mlperf() -> list[Point]:
    packed = replace(
        _fused(_work(512, 48, 1, 8)), fp8=True, fused_attention=True,
        cuda_graphs=True, zero=ZeroSettings(stage=1, overlap=True, bucket_elements=2e7),
    )  # fmt: skip
    unpadded = replace(packed, length=256, micro_batch_size=72, processes=64, cuda_graphs=False)
    many = replace(packed, micro_batch_size=2, processes=3472)
    rows = [
        ("8 H200, FP8, packed to 512", "h200", None, packed, 7972.0 / 2),
        ("8 H100, FP8, packed to 512", "h100", None, packed, 7767.0 / 2),
        ("64 H100, FP8, unpadded, about 256", "h100", "8x400gbit", unpadded, 53_332.0),
        ("3472 H100, FP8, packed to 512", "h100", "8x400gbit", many, 760_139.0 / 2),
    ]
    return [
        Point("MLPerf 4.0", name, gpu, 8, join, work, measured)
        for name, gpu, join, work, measured in rows
    ]


def points() -> list[Point]:
    """Return every published throughput, in the order of `docs/plan.md`."""
    return [*_deepspeed(), *_nvidia(), _mosaic(), *_mlperf()]
