"""The table of devices, and the rates that follow from a data sheet."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.errors import ConfigError
from lert_ds.plan import hardware
from lert_ds.plan.hardware import GIB, GPUS, Device, Rates, custom, known

DEVICES = st.sampled_from(sorted(GPUS))


def test_a_product_of_8192_reaches_what_was_measured() -> None:
    assert known("h100").matrix_flops("bf16", 8192) == pytest.approx(790e12)
    assert known("h200").matrix_flops("fp16", 8192) == pytest.approx(790e12)
    assert known("a100-80").matrix_flops("autocast", 8192) == pytest.approx(267.9e12)


def test_a_copy_reaches_what_was_measured() -> None:
    assert known("h100").memory_rate() == pytest.approx(3.0e12)
    assert known("h200").memory_rate() == pytest.approx(4.3e12, rel=0.01)


def test_half_of_the_full_rate_is_at_the_inner_size_that_says_so() -> None:
    device = known("h100")
    half = device.rates.inner_half
    full = device.matrix_flops("bf16", 1e12)
    assert device.matrix_flops("bf16", half) == pytest.approx(full / 2, rel=1e-6)


@given(DEVICES, st.integers(1, 8000), st.integers(1, 8000))
def test_a_larger_inner_size_is_never_slower(name: str, small: int, more: int) -> None:
    device = known(name)
    below = device.matrix_flops("fp16", small)
    assert below < device.matrix_flops("fp16", small + more)
    assert below < device.peak_flops("fp16")


@given(DEVICES)
def test_no_share_is_above_the_data_sheet(name: str) -> None:
    device = known(name)
    assert device.matrix_flops("fp32", 8192) <= device.peak_flops("fp32")
    assert device.element_rate() <= device.memory_rate() <= device.bytes_per_second
    assert device.link_rate() <= device.link_bytes_per_second


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--gpu tpu: .*v100, a100-40.* cpu .*--peak-tflops"):
        known("tpu")


def test_fp8_is_not_where_the_chip_has_none() -> None:
    assert known("h100").peak_flops("fp8") == 1979e12
    with pytest.raises(ConfigError, match="a100-80: its rate in fp8"):
        known("a100-80").peak_flops("fp8")


def test_a_custom_device_is_its_data_sheet() -> None:
    device = custom(200, 64, 1600, 100)
    assert device.peak_flops("bf16") == 200e12
    assert device.memory_bytes == 64 * GIB
    assert device.bytes_per_second == 1.6e12
    assert device.link_bytes_per_second == 100e9


@pytest.mark.parametrize(
    ("sheet", "flag"),
    [
        ((None, 64, 1600), "needs --peak-tflops"),
        ((200, None, 1600), "needs --memory-gib"),
        ((200, 64, None), "needs --memory-bandwidth-gbytes"),
        ((0, 64, 1600), "--peak-tflops 0: must be above 0"),
        ((200, -1, 1600), "--memory-gib -1"),
        ((200, 64, float("nan")), "--memory-bandwidth-gbytes nan"),
    ],
)
def test_a_custom_device_needs_its_data_sheet(sheet: tuple[float, ...], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        custom(*sheet)


def test_a_measured_rate_wins_over_the_share() -> None:
    device: Device = replace(known("h100"), element_bytes_per_second=5.0)
    assert device.element_rate() == 5.0
    assert Rates().elements < 1
    assert hardware.CPU not in GPUS
