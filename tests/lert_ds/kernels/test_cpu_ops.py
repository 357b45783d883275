import functools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds.kernels import cpu_ops


def test_all_kernels_are_there(native: Any) -> None:
    names = {
        f"{kernel}_{way}"
        for kernel in ("attention", "add_norm", "bias_gelu")
        for way in ("forward", "backward")
    }
    assert all(callable(getattr(native, name)) for name in names)
    assert cpu_ops.load() is native  # one build a process


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (5, 70), (70, 5), (33, 150), (0, 3)])
def test_a_matrix_is_transposed_also_where_it_is_part_of_another(
    native: Any, shape: tuple[int, int]
) -> None:
    rows, columns = shape
    matrix = torch.randn(rows, columns + 7)[:, 3 : 3 + columns]
    transposed = native.transposed(matrix)
    assert transposed.is_contiguous()
    assert torch.equal(transposed, matrix.t())


def test_without_a_compiler_it_warns_once_and_gives_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions\nand more")

    monkeypatch.setattr(cpu_ops.op_builds, "wait_for_builds", lambda: None)  # others' builds
    monkeypatch.setattr(cpu_ops.op_builds.cpp_extension, "load", refuse)
    load = functools.cache(cpu_ops.load.__wrapped__)
    with caplog.at_level(logging.WARNING):
        assert load() is None
        assert load() is None
    (record,) = caplog.records
    assert "could not be built, so the slower kernels train: Ninja is required" in record.message


def test_the_sources_travel_with_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    for path in cpu_ops.SOURCE.parent.iterdir():
        assert any(path.match(pattern) for pattern in patterns), path
