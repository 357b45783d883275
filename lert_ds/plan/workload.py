"""What one process of a training computes and keeps, in numbers: the subject of every formula."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lert_ds import arithmetic
from lert_ds.configuration_lert import LertConfig
from lert_ds.kernels.apply import Kernels, choose
from lert_ds.train import deepspeed_config
from lert_ds.train.batch_schedule import Phase
from lert_ds.training_run import Arithmetic, TrainingRun

MASKING_SECONDS_PER_TOKEN = 134.8e-6 / 512
"""Of one processor core, to mask: measured (`benchmarks/results/loader.json`, an AMD EPYC)."""

ELEMENT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 2.0, "autocast": 3.0}
"""Of an activation; autocast keeps norms and residual sums in fp32, products in bf16; products in 8
bits take and give 16."""
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "autocast": 4.0}
"""Of a weight as processes hand it around."""
GRADIENT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "autocast": 2.0}
"""Of a gradient as it travels: DeepSpeed's communication_data_type by default."""


@dataclass(frozen=True)
class ZeroSettings:
    """What of DeepSpeed's JSON changes when and how much is communicated; DeepSpeed's defaults."""

    stage: int = 0
    overlap: bool = False
    """overlap_comm."""
    bucket_elements: float = 5e8
    """reduce_bucket_size."""
    whole_all_reduce: bool = True
    """use_multi_rank_bucket_allreduce: buckets are added up everywhere, not at their owner."""
    reuse_elements: float = 1e9
    """The smaller of stage3_max_reuse_distance and stage3_max_live_parameters."""
    prefetch_elements: float = 5e7
    """stage3_prefetch_bucket_size."""

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "ZeroSettings":
        """Return those of DeepSpeed's resolved configuration."""
        section = tree.get("zero_optimization", {})
        stage = deepspeed_config.stage(tree)
        overlap = section.get("overlap_comm")
        whole = section.get("use_multi_rank_bucket_allreduce", True)
        return cls(
            stage=stage,
            overlap=stage == 3 if overlap is None else bool(overlap),
            bucket_elements=float(section.get("reduce_bucket_size", 5e8)),
            whole_all_reduce=bool(whole) or not section.get("reduce_scatter", True),
            reuse_elements=min(
                float(section.get("stage3_max_reuse_distance", 1e9)),
                float(section.get("stage3_max_live_parameters", 1e9)),
            ),
            prefetch_elements=float(section.get("stage3_prefetch_bucket_size", 5e7)),
        )


@dataclass(frozen=True)
class Workload:
    """One process's part of a training step."""

    shape: arithmetic.Shape
    heads: float
    """Attention heads, the mean of the layers."""
    parameters: int
    length: int
    masked_share: float
    """Of the positions that the heads run on."""
    micro_batch_size: int
    accumulation: int
    processes: int
    precision: str
    zero: ZeroSettings
    optimizer: str = "adamw"
    checkpointing: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    fused_attention: bool = True
    """Whether no matrix [length, length] is written to memory."""
    fused_kernels: bool = False
    """Whether bias, dropout, residual sum and norm are one kernel, and GELU another or none."""
    fused_qkv: bool = False
    """Whether query, key and value are one product."""
    fused_loss: bool = False
    """Whether no logits are kept."""
    fp8: bool = False
    """Whether the layers' products are in 8 bits."""
    cuda_graphs: bool = False
    """Whether the host starts a step at once."""
    data_workers: int = 1

    @property
    def tokens(self) -> int:
        """Return the tokens of a micro-batch."""
        return self.micro_batch_size * self.length

    @property
    def product_precision(self) -> str:
        """Return the precision of the layers' products."""
        return "fp8" if self.fp8 else self.precision

    @property
    def batch_size(self) -> int:
        """Return the instances of a step, over all processes."""
        return self.micro_batch_size * self.accumulation * self.processes

    def with_micro_batch(self, size: int) -> "Workload":
        """Return the same step in micro-batches of `size`, which must divide a process's share."""
        share = self.micro_batch_size * self.accumulation
        assert share % size == 0
        return replace(self, micro_batch_size=size, accumulation=share // size)


def workload_of(
    run: TrainingRun,
    model: LertConfig,
    numbers: Arithmetic,
    processes: int,
    kernels: Kernels,
) -> Workload:
    """Return what a process of a configured training computes, in steps of the full batch.

    Args:
        run: The training.
        model: The shape of its model.
        numbers: Its arithmetic on that many processes.
        processes: How many train.
        kernels: What computes the model.
    """
    layers = range(model.num_hidden_layers)
    return Workload(
        shape=numbers.shape,
        heads=sum(model.heads_of(layer) for layer in layers) / len(layers),
        parameters=numbers.parameters,
        length=numbers.length,
        masked_share=numbers.masked_share,
        micro_batch_size=numbers.micro_batch_size,
        accumulation=numbers.accumulation,
        processes=processes,
        precision=deepspeed_config.precision(numbers.tree),
        zero=ZeroSettings.of(numbers.tree),
        optimizer=run.optimizer.name,
        checkpointing=run.train.gradient_checkpointing,
        offload_optimizer=deepspeed_config.offloads_optimizer(numbers.tree),
        offload_parameters=deepspeed_config.offloads_parameters(numbers.tree),
        fused_kernels=kernels.compile == "layers" or kernels.residual == "fused",
        fused_qkv=kernels.qkv == "fused",
        fused_loss=kernels.loss == "fused",
        fp8=kernels.fp8 != "off",
        cuda_graphs=kernels.cuda_graphs,
        data_workers=run.train.data_workers,
    )


def in_phase(work: Workload, phase: Phase) -> Workload:
    """Return the part of a step that has another batch, or shorter rows of as many tokens."""
    length = phase.length or work.length
    accumulation = phase.batch_size // (work.micro_batch_size * work.processes)
    return replace(
        work,
        length=length,
        micro_batch_size=work.micro_batch_size * (work.length // length),
        accumulation=accumulation,
    )


def kernels_on(run: TrainingRun, device: str, stage: int) -> Kernels:
    """Return the kernels of a run on a kind of device that need not be here: cpu or cuda."""
    wanted = run.kernels.model_copy(update={"fp8": "off"})  # which asks the device
    chosen = choose(wanted, torch.device(device), stage=stage)
    return replace(chosen, fp8=run.kernels.fp8)
