"""The roofline: operations as `arithmetic.flops_per_token` has them, bytes, and their growth."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest

from lert_ds.arithmetic import flops_per_token
from lert_ds.plan.compute import passes, product_seconds
from lert_ds.plan.hardware import Device, Rates, known
from lert_ds.plan.workload import Workload

Large = Callable[..., Workload]

IDEAL = Device(
    name="ideal", flops=MappingProxyType({"half": 1e12, "fp32": 1e12}), memory_bytes=1e12,
    bytes_per_second=1e30, link_bytes_per_second=1e12, host_bytes_per_second=1e12,
    rates=Rates(matrix=1, inner_half=0, attention=1, memory=1, sustained=1, elements=1),
)  # fmt: skip
"""One operation a picosecond, whatever the shape; bytes cost nothing."""


def test_without_any_loss_the_time_is_the_operations(large: Large) -> None:
    work = large(fused_attention=False)
    forward, backward = passes(work, IDEAL)
    operations = flops_per_token(work.shape, work.length, work.masked_share) * work.tokens
    assert forward.seconds + backward.seconds == pytest.approx(operations / 1e12, rel=1e-6)
    assert backward.seconds == pytest.approx(2 * forward.seconds, rel=1e-6)


def test_fused_attention_computes_its_scores_again(large: Large) -> None:
    forward, backward = passes(large(), IDEAL)
    plain, plain_back = passes(large(fused_attention=False), IDEAL)
    assert forward.attention == pytest.approx(plain.attention)
    assert backward.attention == pytest.approx(plain_back.attention * 10 / 8)


def test_checkpointing_computes_the_layers_twice_forward(large: Large) -> None:
    for device in (IDEAL, known("h100")):
        forward, backward = passes(large(), device)
        _, again = passes(large(checkpointing=True), device)
        assert again.matrix == pytest.approx(backward.matrix + forward.matrix)
        assert again.head == backward.head


def test_a_product_takes_the_longer_of_operations_and_bytes() -> None:
    device = replace(IDEAL, bytes_per_second=1e10)
    assert product_seconds(device, "bf16", 1000, 1000, 1000) == pytest.approx(2e9 / 1e12)
    # A row vector: 2 operations a weight of 2 bytes are nothing beside reading it.
    assert product_seconds(device, "bf16", 1, 1000, 1000) == pytest.approx(2 * 1_002_000 / 1e10)
    assert product_seconds(device, "bf16", 0, 1000, 1000) == 0.0


def test_element_wise_bytes_by_hand(large: Large) -> None:
    # Layers alone: 14h + 2a + 2f and 24h + 3a + 4f elements of 2 bytes, and 2h bytes of masks.
    device = replace(IDEAL, element_bytes_per_second=1e12)
    work = large(masked_share=0.0)
    forward, backward = passes(work, device)
    assert forward.elements == pytest.approx(24 * work.tokens * (2 * 24_576 + 2048) / 1e12)
    assert backward.elements == pytest.approx(24 * work.tokens * (2 * 44_032 + 2048) / 1e12)
    fused, fused_back = passes(replace(work, fused_kernels=True), device)
    assert fused.elements == pytest.approx(24 * work.tokens * (2 * 12_288 + 2048) / 1e12)
    assert fused_back.elements == fused.elements


def test_attention_by_matrices_moves_them(large: Large) -> None:
    device = replace(IDEAL, element_bytes_per_second=1e12)
    work = large(fused_attention=False, fused_kernels=True, masked_share=0.0)
    with_matrices = sum(p.attention for p in passes(work, device))
    without = sum(p.attention for p in passes(work, IDEAL))
    pairs = 24 * 32 * 16 * 512**2
    assert with_matrices - without == pytest.approx(pairs * (2 * 9 + 2) / 1e12, rel=1e-6)


def test_measured_attention_wins(large: Large) -> None:
    forward, backward = passes(large(), replace(IDEAL, attention_flops=1e9))
    pairs = 24 * 32 * 512 * 512 * 1024
    assert forward.attention == pytest.approx(4 * pairs / 1e9)
    assert backward.attention == pytest.approx(8 * pairs / 1e9)


def test_a_model_without_heads_has_no_attention(large: Large) -> None:
    shape = replace(large().shape, attention_size=0.0)
    forward, backward = passes(large(shape=shape, heads=0.0, fused_attention=False), IDEAL)
    assert forward.attention == backward.attention == 0.0


@pytest.mark.parametrize("name", ["v100", "a100-80", "h100", "rtx4090"])
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_twice_the_micro_batch_takes_more_but_not_more_than_twice(
    large: Large, name: str, size: int
) -> None:
    device = known(name)

    def seconds(micro: int) -> float:
        return sum(p.seconds for p in passes(large(micro_batch_size=micro), device))

    assert seconds(size) < seconds(2 * size) <= 2 * seconds(size) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["a100-80", "h100", "h200", "b200"])
def test_no_device_computes_faster_than_its_data_sheet(large: Large, name: str) -> None:
    for work in (large(), large(fused_kernels=True), large(fused_attention=False)):
        seconds = sum(p.seconds for p in passes(work, known(name)))
        operations = flops_per_token(work.shape, work.length, work.masked_share) * work.tokens
        assert operations / seconds < known(name).peak_flops("bf16")


def test_products_in_8_bits_take_half_the_time(large: Large) -> None:
    device = known("h100")
    bf16, fp8 = passes(large(), device), passes(large(fp8=True), device)
    for before, after in zip(bf16, fp8, strict=True):
        assert after.matrix == pytest.approx(before.matrix * 989 / 1979)
        assert (after.head, after.attention) == (before.head, before.attention)


def test_one_product_for_query_key_and_value_is_no_slower(large: Large) -> None:
    separate, joint = passes(large(), known("h100")), passes(large(fused_qkv=True), known("h100"))
    assert all(a.matrix <= b.matrix for a, b in zip(joint, separate, strict=True))


def test_fusing_saves_time_and_kernels(large: Large) -> None:
    plain = passes(large(), known("h100"))
    fused = passes(large(fused_kernels=True), known("h100"))
    for before, after in zip(plain, fused, strict=True):
        assert after.elements < before.elements
        assert after.kernels < before.kernels
