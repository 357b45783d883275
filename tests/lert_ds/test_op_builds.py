import ctypes
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import op_builds


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "builds"))
    (tmp_path / "builds/fused_adam").mkdir(parents=True)
    return tmp_path / "builds"


def lock(folder: Path, age_seconds: float) -> Path:
    path = folder / "fused_adam/lock"
    path.touch()
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def test_without_a_lock_nobody_waits(builds: Path) -> None:
    op_builds.wait_for_builds(poll_seconds=60)


def test_a_lock_of_a_dead_build_is_removed(builds: Path, caplog: pytest.LogCaptureFixture) -> None:
    left = lock(builds, op_builds.STALE_LOCK_SECONDS + 10)
    with caplog.at_level(logging.WARNING):
        op_builds.wait_for_builds(poll_seconds=60)
    assert not left.exists()
    assert f"{left}: removed" in caplog.text


@pytest.mark.parametrize("age_seconds", [0, op_builds.STALE_LOCK_SECONDS + 10])
def test_a_build_under_way_is_waited_for(
    builds: Path, caplog: pytest.LogCaptureFixture, age_seconds: float
) -> None:
    left = lock(builds, age_seconds)
    with left.open("rb"), caplog.at_level(logging.WARNING):  # as torch holds it while it builds
        timer = threading.Timer(0.5, left.unlink)
        timer.start()
        started = time.monotonic()
        op_builds.wait_for_builds(poll_seconds=0.02)
    assert time.monotonic() - started >= 0.4
    assert caplog.text.count("waiting for the process that builds this op") == 1
    timer.join()


def test_the_folder_of_a_version_of_python_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(op_builds.cpp_extension, "get_default_build_root", lambda: str(tmp_path))
    place = tmp_path / "py311_cpu/cpu_adam"
    place.mkdir(parents=True)
    (place / "lock").touch()
    assert op_builds.locks() == [place / "lock"]


def test_the_name_of_shared_memory_is_freed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_builds, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_29500"
    for rank in range(3):
        (tmp_path / f"{prefix}_{rank}").touch()
    op_builds.free_shared_memory(1)
    op_builds.free_shared_memory(1)  # what is not there is no mistake
    assert {path.name for path in tmp_path.iterdir()} == {f"{prefix}_0", f"{prefix}_2"}


def test_ops_are_built_with_the_programs_of_this_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", own]))
    op_builds.use_own_programs()
    op_builds.use_own_programs()
    assert os.environ["PATH"] == os.pathsep.join([own, "/usr/bin", own])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "own_ops.cpp"
    path.write_text('extern "C" int lert_ds_seven() { return 7; }\n', "utf-8")
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is asked of torch's builder, which builds nothing."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def note(name: str, *_: Any, **options: Any) -> str:
        asked.append((name, options))
        return f"/built/{name}.so"

    monkeypatch.setattr(op_builds.cpp_extension, "load", note)
    monkeypatch.setattr(op_builds, "wait_for_builds", lambda: None)  # others' builds
    return asked


def test_a_source_is_built_and_loaded(source: Path, builds: Path) -> None:
    path = op_builds.build(source, ("-O1", "-std=c++20"), "nothing is")
    assert path is not None
    assert path.is_relative_to(builds)
    assert ctypes.CDLL(str(path)).lert_ds_seven() == 7


def test_a_header_that_changes_is_another_build(
    source: Path, built: list[tuple[str, dict[str, Any]]]
) -> None:
    for text in ("#define SEVEN 7\n", "#define SEVEN 8\n", "#define SEVEN 7\n"):
        source.with_name("numbers.h").write_text(text, "utf-8")
        op_builds.build(source, (), "nothing is")
    first, second, third = (name for name, _ in built)
    assert first == third != second


def test_a_source_that_does_not_compile_is_a_warning(
    source: Path, builds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source.write_text("no C++\n", "utf-8")
    assert op_builds.build(source, (), "others do it") is None
    (record,) = caplog.records
    assert "own_ops.cpp could not be built, so others do it: Error building" in record.message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Ninja is required to load C++ extensions\nand more"),
        FileNotFoundError(2, "No such file or directory: 'c++'"),
        ImportError("undefined symbol: sgemm_"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.usefixtures("built")
def test_what_a_build_lacks_is_a_warning(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(op_builds.cpp_extension, "load", refuse)
    with caplog.at_level(logging.WARNING):
        assert op_builds.build(source, (), "others do it") is None
    (record,) = caplog.records
    assert record.message.endswith(str(error).splitlines()[0])


@pytest.mark.usefixtures("built")
def test_a_mistake_of_ours_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        op_builds.build(tmp_path / "missing.cpp", (), "others do it")


def test_each_kind_of_processor_has_a_build_of_its_own(
    source: Path, built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*flags: str) -> None:
        op_builds.build(source, flags, "others do it")

    build()
    build()
    build("-O3")
    monkeypatch.setattr(op_builds, "processor_features", lambda: ("x86_64", "Other", "avx2"))
    build()
    source.write_text("// changed\n", "utf-8")
    build()
    monkeypatch.setattr(torch, "__version__", "9.9")
    build()
    names = [name for name, _ in built]
    assert names[0] == names[1]
    assert len(set(names)) == 5
    assert all(name.isidentifier() for name in names)  # it becomes the name of the library
    for name, options in built:
        assert f"-DLERT_DS_LIBRARY={name}" in options["extra_cflags"]


@pytest.mark.parametrize(
    ("machine", "flag"), [("x86_64", "-march=native"), ("aarch64", "-mcpu=native")]
)
def test_it_is_built_for_this_processor(
    source: Path, built: list[Any], monkeypatch: pytest.MonkeyPatch, machine: str, flag: str
) -> None:
    monkeypatch.setattr(op_builds.platform, "machine", lambda: machine)
    op_builds.build(source, (), "others do it")
    assert flag in built[0][1]["extra_cflags"]


def test_it_waits_for_who_builds(
    source: Path, built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(op_builds, "wait_for_builds", lambda: waited.append(len(built)))
    op_builds.build(source, (), "others do it")
    assert waited == [0]  # before it builds


@pytest.mark.usefixtures("built")
def test_every_start_builds_with_the_same_ninja(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another one would find its commands changed, and build for a minute again.
    monkeypatch.setenv("PATH", "/usr/bin")
    op_builds.build(source, (), "others do it")
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ("9.0a", "9.0"),
        ("8.0;9.0a 10.0f+PTX", "8.0;9.0 10.0+PTX"),
        ("Hopper", "Hopper"),
        (None, None),
    ],
)
def test_deepspeed_gets_architectures_that_it_can_read(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, named: str | None
) -> None:
    if listed is None:
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    else:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    op_builds.name_plain_architectures()
    assert os.environ.get("TORCH_CUDA_ARCH_LIST") == named
