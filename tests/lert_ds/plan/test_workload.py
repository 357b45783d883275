"""From a configured training to the numbers that formulas take."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lert_ds import config, pretrain
from lert_ds.plan.workload import Workload, ZeroSettings, in_phase, kernels_on, workload_of
from lert_ds.train import deepspeed_config
from lert_ds.train.batch_schedule import Phase

CONFIGS = Path(pretrain.__file__).parent / "configs"


def planned(*overrides: str, processes: int = 8) -> Workload:
    given = config.load(
        pretrain.PretrainRun, CONFIGS / "pretrain-large.toml", ["corpus=not-there", *overrides]
    )
    plan = pretrain.work_out(given, processes)
    stage = deepspeed_config.stage(plan.numbers.tree)
    kernels = kernels_on(given, "cuda", stage)
    return workload_of(plan.run, plan.model, plan.numbers, processes, kernels)


def test_lert_large_on_eight() -> None:
    work = planned()
    assert (work.heads, work.length, work.micro_batch_size, work.accumulation) == (16, 512, 32, 4)
    assert work.batch_size == 1024
    assert work.tokens == 32 * 512
    assert work.masked_share == 75 / 512
    assert (work.precision, work.optimizer) == ("bf16", "adamw")
    assert work.zero == ZeroSettings(1, True, 2e8, prefetch_elements=5e7)
    assert not work.checkpointing
    assert 325e6 < work.parameters < 326e6


def test_what_the_files_of_deepspeed_say_is_taken_over() -> None:
    third = planned("deepspeed=ds_configs/zero3_bf16_offload.json")
    assert third.zero.stage == 3
    assert (third.zero.bucket_elements, third.zero.prefetch_elements) == (5e7, 5e7)
    assert third.offload_optimizer
    assert third.offload_parameters
    assert planned("deepspeed=ds_configs/zero0_fp32.json").precision == "fp32"


def test_deepspeeds_defaults_are_those_of_an_empty_section() -> None:
    assert ZeroSettings.of({}) == ZeroSettings()
    third = ZeroSettings.of({"zero_optimization": {"stage": 3}})
    assert third.overlap
    assert third.reuse_elements == 1e9
    near = {"stage": 3, "stage3_max_live_parameters": 10, "stage3_max_reuse_distance": 20}
    assert ZeroSettings.of({"zero_optimization": near}).reuse_elements == 10


def test_a_bucket_goes_to_its_owner_only_where_both_keys_say_so() -> None:
    def whole(**keys: bool) -> bool:
        return ZeroSettings.of({"zero_optimization": {"stage": 2, **keys}}).whole_all_reduce

    assert whole()
    assert not whole(use_multi_rank_bucket_allreduce=False)
    assert whole(use_multi_rank_bucket_allreduce=False, reduce_scatter=False)


def test_a_pruned_model_counts_the_mean_of_its_layers(large: Callable[..., Workload]) -> None:
    assert large().heads == 16
    given = planned("architecture.layers=2", "architecture.heads=8")
    assert (given.heads, given.shape.layers) == (8, 2)


def test_another_micro_batch_keeps_the_batch(large: Callable[..., Workload]) -> None:
    other = large().with_micro_batch(64)
    assert (other.micro_batch_size, other.accumulation, other.batch_size) == (64, 2, 1024)
    with pytest.raises(AssertionError):
        large().with_micro_batch(3)


def test_kernels_are_those_of_a_gpu() -> None:
    assert planned().fused_kernels
    assert planned().fused_loss
    assert not planned().fp8
    plain = planned("kernels.compile=off", "kernels.loss=plain")
    assert not plain.fused_kernels
    assert not plain.fused_loss
    assert planned("kernels.compile=off", "kernels.residual=fused").fused_kernels
    eight = planned("kernels.fp8=torchao", "kernels.qkv=fused")
    assert (eight.product_precision, eight.precision, eight.fused_qkv) == ("fp8", "bf16", True)


def test_a_phase_has_its_batch_and_its_rows(large: Callable[..., Workload]) -> None:
    work = large()
    short = in_phase(work, Phase(0, 10, 256, 128))
    assert (short.length, short.micro_batch_size, short.accumulation) == (128, 128, 1)
    assert short.tokens == work.tokens
    assert short.batch_size == 1024  # rows of 128: 256 instances
    assert in_phase(work, Phase(10, 20, 1024, None)) == work
