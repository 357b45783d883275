"""What a process keeps at its peak, whether it fits, and the largest micro-batch."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lert_ds.plan.hardware import GIB, known
from lert_ds.plan.memory import fit, largest_micro_batch, usable_bytes
from lert_ds.plan.workload import Workload

Large = Callable[..., Workload]
P = 325_600_000


def test_states_are_those_of_the_arithmetic(large: Large) -> None:
    states = fit(large(), known("h100")).states
    assert states.weights == 2 * P
    assert states.optimizer == 12 * P / 8


def test_buffers_by_stage(large: Large) -> None:
    h100 = known("h100")
    assert fit(large(stage=0), h100).buffers == 2 * P
    assert fit(large(stage=1), h100).buffers == 2 * 2 * 2e8
    assert fit(large(stage=1, overlap=False), h100).buffers == 2 * 2e8
    third = fit(large(stage=3, bucket_elements=5e7), h100).buffers
    assert third == 2 * 2 * 5e7 + 2 * P  # the weights that are gathered are there all the same
    assert fit(large(stage=1, processes=1), h100).buffers == 0.0


def test_the_peak_is_in_the_backward_pass_or_in_the_update(large: Large) -> None:
    h100 = known("h100")
    said = fit(large(), h100)
    rest = said.states.weights + said.states.gradients + said.states.optimizer + said.buffers
    assert said.peak == rest + said.states.activations
    tiny = fit(large(micro_batch_size=1, accumulation=128, checkpointing=True, stage=0), h100)
    assert tiny.update == 4 * P
    assert tiny.peak > tiny.states.device_total + tiny.buffers


def test_a_large_micro_batch_does_not_fit_a_small_card(large: Large) -> None:
    assert fit(large(), known("h100")).fits
    assert not fit(large(micro_batch_size=128, accumulation=1), known("rtx4090")).fits


@pytest.mark.parametrize("name", ["v100", "a100-40", "h200", "rtx4090"])
def test_the_largest_micro_batch_fits_and_the_next_does_not(large: Large, name: str) -> None:
    device, work = known(name), large()
    found = largest_micro_batch(work, device)
    assert found is not None
    assert fit(work.with_micro_batch(found), device).fits
    above = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size > found]
    assert not any(fit(work.with_micro_batch(size), device).fits for size in above)


def test_where_the_states_do_not_fit_no_micro_batch_does(large: Large) -> None:
    assert largest_micro_batch(large(parameters=20_000_000_000), known("h100")) is None


def test_attention_by_matrices_keeps_them(large: Large) -> None:
    kept = fit(large(fused_attention=False), known("v100")).matrices
    assert kept == 24 * 32 * 16 * 512**2 * 5
    once = fit(large(fused_attention=False, checkpointing=True), known("v100")).matrices
    assert once == kept / 24
    own = replace(known("v100"), attention_flops=1.0)
    assert fit(large(fused_attention=False), own).matrices == kept * 2 / 5


def test_a_fused_loss_keeps_no_logits(large: Large) -> None:
    h100 = known("h100")
    plain, fused = fit(large(), h100), fit(large(fused_loss=True), h100)
    logits = 2 * 4 * 32 * 75 * 21_128
    pieces = 2 * 64 * 2**20
    assert plain.peak - fused.peak == pytest.approx(logits - pieces)


def test_some_memory_is_not_the_trainings() -> None:
    assert usable_bytes(known("h100")) == pytest.approx((80 * 0.95 - 1.5) * GIB)
    assert usable_bytes(replace(known("h100"), overlaps=False)) == pytest.approx(80 * 0.95 * GIB)
