import errno
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lert_ds.train import checkpoint as module
from lert_ds.train import checkpoint_folder as layout
from lert_ds.train.checkpoint import Checkpoints, SaveError
from lert_ds.train.checkpoint_search import Found
from lert_ds.train.fragments import write
from lert_ds.train.peers import Peers

Ranks = Callable[..., list[Any]]
FULL = OSError(errno.ENOSPC, "No space left on device")


def save(checkpoints: Checkpoints, engine: Any, *steps: int) -> None:
    for step in steps:
        checkpoints.start(engine, step, {"samples": 8 * step})
        assert checkpoints.finish() == f"step-{step}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_saved_is_found_and_loaded(tmp_path: Path, stand_in: Any) -> None:
    folder = tmp_path / "run/checkpoints"
    checkpoints = Checkpoints(folder, Peers(1), keep=2)
    assert checkpoints.newest() is None
    engine = stand_in(3)
    save(checkpoints, engine, 5)
    manifest = layout.read_manifest(folder, "step-5")
    facts = {key: manifest[key] for key in ("step", "processes", "zero_stage", "precision")}
    assert facts == {"step": 5, "processes": 1, "zero_stage": 2, "precision": "fp32"}

    again = Checkpoints(folder, Peers(1), keep=2)
    assert again.newest() == Found("step-5", ())
    other = stand_in(4)
    assert again.load(other, "step-5") == {"step": 5, "samples": 40}
    assert other.numbers == {"engine/global_steps": 3.0}
    assert other.tensors.keys() == engine.tensors.keys()
    assert all(torch.equal(other.tensors[kind], engine.tensors[kind]) for kind in engine.tensors)


def test_the_newest_and_every_mth_stay_and_latest_names_the_last(
    tmp_path: Path, stand_in: Any
) -> None:
    checkpoints = Checkpoints(tmp_path, Peers(1), keep=2, keep_every=20)
    save(checkpoints, stand_in(), 5, 10, 20, 30, 100)
    assert names(tmp_path) == {"step-20", "step-30", "step-100", "latest"}
    assert (tmp_path / "latest").read_text() == "step-100"


def test_keeping_one_keeps_the_new_one(tmp_path: Path, stand_in: Any) -> None:
    save(Checkpoints(tmp_path, Peers(1), keep=1), stand_in(), 1, 2)
    assert names(tmp_path) == {"step-2", "latest"}


class Held(NamedTuple):
    """A writer that waits before it writes, as on a slow disk."""

    go: threading.Event
    at_work: threading.Event


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    slow = Held(threading.Event(), threading.Event())

    def write_later(path: Path, fragments: Any) -> layout.Written:
        slow.at_work.set()
        assert slow.go.wait(30)
        return write(path, fragments)

    monkeypatch.setattr(module, "write", write_later)
    return slow


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, stand_in: Any, held: Held
) -> None:
    checkpoints = Checkpoints(tmp_path, Peers(1), keep=2)
    engine = stand_in()
    before = engine.state()
    checkpoints.start(engine, 5, {})
    assert held.at_work.wait(30)
    assert checkpoints.under_way
    assert checkpoints.writing
    for tensor in engine.tensors.values():
        tensor.add_(1)  # the next step
    assert layout.tags(tmp_path) == [], "it is none before all of it is on the disk"
    held.go.set()
    assert checkpoints.finish() == "step-5"
    assert not checkpoints.under_way
    assert not checkpoints.writing
    checkpoints.load(engine, "step-5")
    assert all(torch.equal(engine.tensors[kind], before[kind]) for kind in before)


def test_without_a_background_nothing_is_copied(tmp_path: Path, stand_in: Any) -> None:
    taken: list[bool] = []

    class Watched(stand_in):  # type: ignore[misc]
        def snapshot(self, *, copy: bool) -> Any:
            taken.append(copy)
            return super().snapshot(copy=copy)

    save(Checkpoints(tmp_path, Peers(1), keep=2, background=False), Watched(), 5)
    save(Checkpoints(tmp_path, Peers(1), keep=2), Watched(), 10)
    assert taken == [False, True]


# --- a disk that is full, or read-only


def check_that_saving_goes_on(checkpoints: Checkpoints, engine: Any) -> None:
    """Check that a failed save of step 10 left that of step 5 alone, and is no obstacle."""
    assert not checkpoints.under_way
    assert names(checkpoints.folder) == {"step-5", "latest"}
    assert checkpoints.newest() == Found("step-5", ())
    save(checkpoints, engine, 10)
    assert checkpoints.newest() == Found("step-10", ())


def test_too_little_room_is_told_before_anything_is_touched(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, engine = Checkpoints(tmp_path, Peers(1), keep=1), stand_in()
    save(checkpoints, engine, 5)
    need = 3 * 12 * 4
    with monkeypatch.context() as patch:
        usage = shutil._ntuple_diskusage(10**9, 10**9, need - 1)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(SaveError) as error:
            checkpoints.start(engine, 10, {})
    assert str(error.value) == (
        f"{tmp_path / 'step-10'} could not be written: rank 0: {need} bytes are needed and "
        f"{need - 1} are free"
    )
    check_that_saving_goes_on(checkpoints, engine)


def test_a_disk_that_fills_up_while_it_is_written_leaves_the_older_one(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, engine = Checkpoints(tmp_path, Peers(1), keep=1), stand_in()
    save(checkpoints, engine, 5)

    def fill_up(path: Path, fragments: Any) -> layout.Written:
        path.write_bytes(b"as much as there was room for")
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(module, "write", fill_up)
        checkpoints.start(engine, 10, {})
        with pytest.raises(SaveError, match=r"step-10 could not be written: rank 0: .*No space"):
            checkpoints.finish()
    check_that_saving_goes_on(checkpoints, engine)


@pytest.mark.parametrize("function", ["start_part", "write_state"])
def test_a_disk_that_cannot_be_written_to_is_told_at_once(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    checkpoints, engine = Checkpoints(tmp_path, Peers(1), keep=1), stand_in()
    save(checkpoints, engine, 5)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(layout, function, refuse)
        with pytest.raises(SaveError, match="Read-only file system"):
            checkpoints.start(engine, 10, {})
    check_that_saving_goes_on(checkpoints, engine)


def test_a_disk_that_is_full_when_it_is_published_leaves_the_older_one(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, engine = Checkpoints(tmp_path, Peers(1), keep=1), stand_in()
    save(checkpoints, engine, 5)

    def full(*_: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        checkpoints.start(engine, 10, {})
        patch.setattr(layout, "write_json", full)
        with pytest.raises(SaveError, match="No space left"):
            checkpoints.finish()
    check_that_saving_goes_on(checkpoints, engine)


def test_old_ones_that_cannot_be_removed_are_no_error(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, Peers(1), keep=1)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(layout, "remove_old", refuse)
    save(checkpoints, stand_in(), 5, 10)
    assert checkpoints.newest() == Found("step-10", ())
    assert "old checkpoints cannot be removed" in caplog.text


def test_a_fault_of_ours_in_the_writer_is_told_too(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, Peers(1), keep=1)

    def fail(path: Path, fragments: Any) -> layout.Written:
        raise KeyError("complex64")

    monkeypatch.setattr(module, "write", fail)
    checkpoints.start(stand_in(), 10, {})
    with pytest.raises(SaveError, match="rank 0: KeyError: 'complex64'"):
        checkpoints.finish()


# --- several processes


def test_processes_on_a_shared_disk_write_one_checkpoint(
    as_ranks: Ranks, tmp_path: Path, stand_in: Any
) -> None:
    def run(folder: Path, peers: Any) -> Found | None:
        checkpoints = Checkpoints(folder, peers, keep=1)
        save(checkpoints, stand_in(), 1, 2)
        return checkpoints.newest()

    assert as_ranks([tmp_path] * 4, run) == [Found("step-2", ())] * 4
    assert names(tmp_path) == {"step-2", "latest"}
    files = {layout.rank_file(rank) for rank in range(4)}
    assert names(tmp_path / "step-2") == {"manifest.json", "state.json", *files}


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_any_number_of_processes_reads_what_four_wrote(
    as_ranks: Ranks, tmp_path: Path, stand_in: Any, processes: int
) -> None:
    def write_it(folder: Path, peers: Any) -> None:
        save(Checkpoints(folder, peers, keep=1), stand_in(7), 4)

    def read_it(folder: Path, peers: Any) -> Any:
        checkpoints, engine = Checkpoints(folder, peers, keep=1), stand_in(1)
        found = checkpoints.newest()
        assert found is not None
        return checkpoints.load(engine, found.tag), engine

    as_ranks([tmp_path] * 4, write_it)
    for state, engine in as_ranks([tmp_path] * processes, read_it):
        assert state == {"step": 4, "samples": 32}
        expected = stand_in(7).tensors
        assert all(torch.equal(engine.tensors[kind], expected[kind]) for kind in expected)


@pytest.mark.parametrize("where", ["start", "finish"])
def test_where_one_process_cannot_write_all_of_them_hear_it(
    as_ranks: Ranks, tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folders = [tmp_path / "host-0", tmp_path / "host-0", tmp_path / "host-2"]
    full = folders[2]
    start_part, disk = layout.start_part, [True]

    def start_where_there_is_room(folder: Path, tag: str) -> Path:
        if folder == full and where == "start" and disk[0] and tag == "step-2":
            raise FULL
        return start_part(folder, tag)

    def write_where_there_is_room(path: Path, fragments: Any) -> layout.Written:
        if path.is_relative_to(full) and where == "finish" and disk[0] and "step-2" in str(path):
            raise FULL
        return write(path, fragments)

    monkeypatch.setattr(layout, "start_part", start_where_there_is_room)
    monkeypatch.setattr(module, "write", write_where_there_is_room)
    told: list[str] = []

    def run(folder: Path, peers: Any) -> None:
        checkpoints, engine = Checkpoints(folder, peers, keep=1), stand_in()
        save(checkpoints, engine, 1)
        try:
            save(checkpoints, engine, 2)
        except SaveError as error:
            told.append(str(error).partition("could not be written: ")[2])
        peers.gather(None)  # one process a folder removes what was begun
        assert names(folder) == {"step-1", "latest"}
        peers.gather(None)
        disk[0] = False
        save(checkpoints, engine, 3)
        peers.gather(None)
        assert names(folder) == {"step-3", "latest"}

    as_ranks(folders, run)
    assert told == [f"rank 2: {FULL}"] * 3


def test_no_host_lets_an_old_one_go_before_all_have_the_new_one(
    as_ranks: Ranks, tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One host dies between the other's publishing and its own: with keep=1 nothing would be left.

    Each has the files of its own process alone.
    """
    folders = [tmp_path / "host-0", tmp_path / "host-1"]
    publish = layout.publish

    class Died(Exception):
        pass

    def die(folder: Path, tag: str, manifest: Any) -> None:
        if folder == folders[1] and tag == "step-2":
            while not (folders[0] / tag).is_dir():
                time.sleep(0.01)
            time.sleep(0.3)  # for what the other does after it
            raise Died
        publish(folder, tag, manifest)

    monkeypatch.setattr(layout, "publish", die)

    def run(folder: Path, peers: Any) -> None:
        save(Checkpoints(folder, peers, keep=1), stand_in(), 1, 2)

    with pytest.raises(Died):
        as_ranks(folders, run)
    found = as_ranks(folders, lambda folder, peers: Checkpoints(folder, peers, keep=1).newest())
    assert {one.tag for one in found} == {"step-1"}
