import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds.kernels import cpu_ops


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load` as a process that has built nothing calls it first."""
    monkeypatch.setattr(cpu_ops.op_builds, "wait_for_builds", lambda: None)  # others' builds
    load = functools.cache(cpu_ops.load.__wrapped__)
    monkeypatch.setattr(cpu_ops, "load", load)
    return load


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What is asked of torch's builder, which builds nothing."""
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def note(name: str, *arguments: Any, **options: Any) -> None:
        asked.append((name, arguments, options))

    monkeypatch.setattr(cpu_ops.cpp_extension, "load", note)
    return asked


def test_all_kernels_are_there(native: Any) -> None:
    names = {
        f"{kernel}_{way}"
        for kernel in ("attention", "add_norm", "bias_gelu")
        for way in ("forward", "backward")
    }
    assert all(callable(getattr(native, name)) for name in names)
    assert cpu_ops.load() is native  # one build a process


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Ninja is required to load C++ extensions\nand more"),
        FileNotFoundError(2, "No such file or directory: 'c++'"),
        ImportError("undefined symbol: sgemm_"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_compiler_it_warns_once_and_gives_nothing(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cpu_ops.cpp_extension, "load", refuse)
    with caplog.at_level(logging.WARNING):
        assert fresh() is None
        assert fresh() is None
    (record,) = caplog.records
    assert "could not be built, so the slower ones train: " in record.message
    assert record.message.endswith(str(error).splitlines()[0])


def test_a_mistake_of_ours_is_not_hidden(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "SOURCE", Path("missing.cpp"))
    with pytest.raises(FileNotFoundError):
        fresh()


def test_each_kind_of_processor_has_a_build_of_its_own(
    fresh: Any, built: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fresh()
    fresh.cache_clear()
    fresh()
    monkeypatch.setattr(cpu_ops, "processor_features", lambda: ("x86_64", "Other", "avx2"))
    fresh.cache_clear()
    fresh()
    source = tmp_path / "cpu_ops.cpp"
    source.write_text(cpu_ops.SOURCE.read_text("utf-8") + "// changed\n", "utf-8")
    monkeypatch.setattr(cpu_ops, "SOURCE", source)
    fresh.cache_clear()
    fresh()
    monkeypatch.setattr(torch, "__version__", "9.9")
    fresh.cache_clear()
    fresh()
    names = [name for name, *_ in built]
    assert names[0] == names[1]
    assert len(set(names)) == 4
    assert all(name.isidentifier() for name in names)  # it becomes the name of the library
    for name, _, options in built:
        assert f"-DLERT_DS_LIBRARY={name}" in options["extra_cflags"]


@pytest.mark.parametrize(
    ("machine", "flag"), [("x86_64", "-march=native"), ("aarch64", "-mcpu=native")]
)
def test_it_is_built_for_this_processor(
    fresh: Any, built: list[Any], monkeypatch: pytest.MonkeyPatch, machine: str, flag: str
) -> None:
    monkeypatch.setattr(cpu_ops.platform, "machine", lambda: machine)
    fresh()
    assert flag in built[0][2]["extra_cflags"]


def test_it_waits_for_who_builds(
    fresh: Any, built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(cpu_ops.op_builds, "wait_for_builds", lambda: waited.append(len(built)))
    fresh()
    assert waited == [0]  # before it builds


def test_the_source_travels_with_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    assert any(cpu_ops.SOURCE.match(pattern) for pattern in patterns)


def test_every_start_builds_with_the_same_ninja(
    fresh: Any, built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another one would find its commands changed, and build for a minute again.
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(cpu_ops.torch, "ops", type("Ops", (), {"__getattr__": lambda *_: 1})())
    fresh()
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
