import logging
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from lert_ds.train import op_builds


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
