"""A device whose formulas give back what was measured on the cores here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lert_ds import config, pretrain
from lert_ds.errors import UserError
from lert_ds.plan import calibrate
from lert_ds.plan.calibrate import device_of
from lert_ds.plan.compute import passes
from lert_ds.plan.measure import LARGE, SMALL, Measured
from lert_ds.plan.workload import Workload

Large = Callable[..., Workload]
MEASURED = Measured(
    large_flops=80e9, small_flops=60e9, layer_seconds=1.9, half_length_seconds=1.8,
    layer_tokens=1024.0, copy_bytes=10e9, launch_seconds=1e-6,
)  # fmt: skip


def test_the_products_have_the_rates_that_were_measured(large: Large) -> None:
    device = device_of(MEASURED, large(precision="fp32"), 1e9, 1e-4, 1e9)
    assert device.matrix_flops("fp32", LARGE) == pytest.approx(80e9)
    assert device.matrix_flops("fp32", SMALL) == pytest.approx(60e9)
    assert not device.overlaps


@pytest.mark.parametrize("fused_kernels", [False, True])
def test_a_layer_takes_what_it_took(large: Large, fused_kernels: bool) -> None:
    work = large(precision="fp32", fused_kernels=fused_kernels, micro_batch_size=2)
    device = device_of(MEASURED, work, 1e9, 1e-4, 1e9)

    def seconds(layers: int, micro: int = 2) -> float:
        shape = replace(work.shape, layers=layers)
        one = replace(work, shape=shape, micro_batch_size=micro)
        return sum(p.matrix + p.attention + p.elements for p in passes(one, device))

    assert seconds(5) - seconds(4) == pytest.approx(1.9)  # embeddings and gradients fall out
    assert sum(p.attention for p in passes(work, device)) / 24 == pytest.approx(2 * (1.9 - 1.8))


@pytest.mark.parametrize(
    "odd",
    [
        {"small_flops": 200e9},  # the small product faster than the large one
        {"small_flops": 1e9},  # much slower than any k / (k + k½) allows
        {"half_length_seconds": 1.5},  # the shorter length slower
        {"layer_seconds": 1e-4},  # a layer faster than its products
    ],
)
def test_noise_makes_no_rate_negative_or_endless(large: Large, odd: dict[str, float]) -> None:
    noisy = Measured(**{**MEASURED.__dict__, **odd})
    device = device_of(noisy, large(precision="fp32"), 1e9, 1e-4, 1e9)
    assert device.attention_flops is not None
    assert 0 < device.attention_flops < 1e18
    assert 0 < device.element_rate() < 1e18
    assert 0 <= device.rates.inner_half <= 4 * LARGE


def given(tmp_path: Path) -> pretrain.PretrainRun:
    path = Path(pretrain.__file__).parent / "configs/pretrain-quickstart.toml"
    return config.load(pretrain.PretrainRun, path, [f"output={tmp_path}", "corpus=none"])


@pytest.mark.slow
def test_cores_here_are_measured_together(tmp_path: Path, large: Large) -> None:
    shape = large().shape.__class__(3, 128, 128, 512, 1000)
    work = large(shape=shape, heads=4, length=64, precision="fp32", processes=2)
    device = calibrate.measured_cpu(given(tmp_path), work, 2)
    assert 1e8 < device.matrix_flops("fp32", 1024) < 1e14
    assert 1e7 < device.link_rate() < 1e12
    assert device.memory_bytes > 1e8
    assert all(p.seconds > 0 for p in passes(work, device))


def test_a_measurement_that_fails_is_told(
    tmp_path: Path, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = large(precision="fp32", length=64)
    monkeypatch.setattr(calibrate.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="--gpu cpu: the measurement"):
        calibrate.measured_cpu(given(tmp_path), work, 1)


def test_an_all_reduce_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(question: dict[str, Any]) -> dict[str, Any]:
        assert question["world_size"] == 2
        return {"said": [{"problem": "no gloo"}, {"problem": "no gloo"}]}

    monkeypatch.setattr(calibrate, "start_all_reduce", fails)
    with pytest.raises(UserError, match="no gloo"):
        calibrate._all_reduce_rate(2)
