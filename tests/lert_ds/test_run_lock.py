import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lert_ds import run_lock
from lert_ds.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from lert_ds import run_lock
with run_lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_run_holds_is_refused_with_whose_it_is(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    holder = run_lock.holder(tmp_path)
    assert holder is not None
    assert (holder.process, holder.host) == (other.pid, socket.gethostname())
    assert holder.is_here
    whose = f"process {other.pid} of {socket.gethostname()}"
    with pytest.raises(ConfigError) as error, run_lock.held(tmp_path):
        pass
    assert str(error.value).startswith(f"output = {tmp_path}: a run is at work there ({whose});")
    assert run_lock.holder(tmp_path) == holder, "who is refused changes nothing"


def test_a_process_that_is_killed_lets_go(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert run_lock.holder(tmp_path) is None
    with run_lock.held(tmp_path):
        tree = json.loads((tmp_path / run_lock.LOCK).read_text())
        assert tree["process"] == os.getpid(), "and nothing of the dead one's is left"


def test_it_is_held_as_long_as_the_body(tmp_path: Path) -> None:
    assert run_lock.holder(tmp_path) is None
    with run_lock.held(tmp_path):
        holder = run_lock.holder(tmp_path)
        assert holder is not None
        assert holder.process == os.getpid()
    assert run_lock.holder(tmp_path) is None
    assert run_lock.holder(tmp_path / "not there") is None


def test_who_only_asks_does_not_take_it(tmp_path: Path) -> None:
    with run_lock.held(tmp_path):
        pass
    assert run_lock.holder(tmp_path) is None
    with run_lock.held(tmp_path):
        run_lock.holder(tmp_path)
        assert run_lock.holder(tmp_path) is not None


def test_a_damaged_lock_file_is_of_somebody(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    (tmp_path / run_lock.LOCK).write_text("{")
    with pytest.raises(ConfigError, match=r"at work there \(unknown\); w"), run_lock.held(tmp_path):
        pass


def test_a_holder_elsewhere_is_not_here() -> None:
    assert not run_lock.Holder(1, "another-host", "today").is_here


def test_a_file_system_without_locks_has_no_guard_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with run_lock.held(tmp_path):
        assert run_lock.holder(tmp_path) is None
    assert "cannot be locked" in caplog.text
    assert "start no second run there" in caplog.text
