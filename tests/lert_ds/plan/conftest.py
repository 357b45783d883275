"""Trainings on paper."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lert_ds.arithmetic import Shape
from lert_ds.plan.workload import Workload, ZeroSettings

LARGE = Workload(
    shape=Shape(24, 1024, 1024, 4096, 21_128), heads=16, parameters=325_600_000, length=512,
    masked_share=75 / 512, micro_batch_size=32, accumulation=4, processes=8, precision="bf16",
    zero=ZeroSettings(stage=1, overlap=True, bucket_elements=2e8),
)  # fmt: skip


@pytest.fixture
def large() -> Callable[..., Workload]:
    """Return LERT-large on 8 devices, with other numbers by keyword; `stage` among them."""

    def make(**changes: Any) -> Workload:
        zero = {name: changes.pop(name) for name in list(changes) if hasattr(LARGE.zero, name)}
        return replace(LARGE, zero=replace(LARGE.zero, **zero), **changes)

    return make
