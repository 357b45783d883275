from pathlib import Path
from typing import Any

import pytest

from lert_ds.errors import CheckpointError
from lert_ds.train.checkpoint import Checkpoints


class FakeEngine:
    """Writes and reads a state as DeepSpeed's engine would."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        (folder / tag).mkdir()
        (folder / tag / "weights").write_text(str(state["step"]))
        if self.fails:
            raise OSError("No space left on device")

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        return {"step": int((folder / tag / "weights").read_text())}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(FakeEngine(), step, {})  # type: ignore[arg-type]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_newest_stay_and_latest_names_the_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    save(checkpoints, 5, 10, 20, 100)
    assert names(tmp_path / "checkpoints") == {"step-20", "step-100", "latest"}
    assert checkpoints.newest() == "step-100"
    assert checkpoints.load(FakeEngine(), "step-100") == {"step": 100}  # type: ignore[arg-type]


def test_keeping_one_keeps_the_new_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1, 2)
    assert names(tmp_path) == {"step-2", "latest"}


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 5)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(FakeEngine(fails=True), 10, {})  # type: ignore[arg-type]
    assert checkpoints.newest() == "step-5"
    save(checkpoints, 10)  # what the failed save left behind is no obstacle
    assert checkpoints.newest() == "step-10"
    assert names(tmp_path) == {"step-5", "step-10", "latest"}


def test_latest_that_names_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("step-7")
    with pytest.raises(CheckpointError, match="latest: it names 'step-7', which is not there"):
        Checkpoints(tmp_path, keep=1).newest()


def test_latest_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "checkpoints/latest").write_text("../outside")
    with pytest.raises(CheckpointError, match="latest"):
        Checkpoints(tmp_path / "checkpoints", keep=1).newest()
