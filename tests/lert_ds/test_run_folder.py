import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds import run_folder, run_lock, training_run
from lert_ds.corpora import Corpora
from lert_ds.errors import ConfigError, CorpusError
from lert_ds.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("process_group")
Prepare = Callable[..., tuple[TrainingRun, Corpora]]


@pytest.fixture(autouse=True)
def _the_group_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "leave_processes", lambda: None)  # DeepSpeed joins but once


@pytest.fixture
def plan(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> Prepare:
    """Return a run in `tmp_path / "run"` and its corpora: changes of the configuration."""

    def make(**changes: Any) -> tuple[TrainingRun, Corpora]:
        run = run_on(changes.pop("corpus", tiny_corpus), tmp_path / "run", **changes)
        return run, training_run.open_corpora(run)

    return make


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path) -> None:
    """Write what a run leaves, and something of the user's."""
    for name in ("checkpoints/step-3", "model", "tensorboard"):
        (folder / name).mkdir(parents=True)
    for name in ("metrics.jsonl", "summary.json", "report.html", "wandb-id", "notes.txt"):
        (folder / name).write_text("{}\n")


def test_a_new_folder_is_made_held_and_told(plan: Prepare) -> None:
    run, corpora = plan()
    with run_folder.prepared(run, corpora) as peers:
        assert peers.alone
        holder = run_lock.holder(run.output)
        assert holder is not None
        assert names(run.output) == [run_lock.LOCK, "config.json"]
    assert run_lock.holder(run.output) is None


def test_what_an_interrupted_run_left_stays(plan: Prepare, tmp_path: Path) -> None:
    fill(tmp_path / "run")
    before = names(tmp_path / "run")
    with run_folder.prepared(*plan()):
        assert names(tmp_path / "run") == sorted([*before, run_lock.LOCK, "config.json"])


@pytest.mark.parametrize("change", [{"overwrite": True}, {"resume": "never"}])
def test_a_new_start_clears_what_a_run_writes_and_nothing_else(
    plan: Prepare, tmp_path: Path, change: dict[str, Any]
) -> None:
    fill(tmp_path / "run")
    with run_folder.prepared(*plan(**change)):
        assert names(tmp_path / "run") == [run_lock.LOCK, "config.json", "notes.txt"]


def test_a_finished_result_is_uploaded_once_the_processes_have_parted(
    plan: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(run_folder, "leave_processes", lambda: done.append("left"))
    monkeypatch.setattr(run_folder, "join_processes", lambda _: True)
    monkeypatch.setattr(run_folder.hub_upload, "try_push", lambda *given: done.append(given))
    run, corpora = plan(push_to_hub="me/x")
    with run_folder.prepared(run, corpora):
        pass  # stopped before its end
    assert done == ["left"]
    with pytest.raises(ZeroDivisionError), run_folder.prepared(run, corpora):
        _ = 1 / 0
    assert done == ["left"] * 2
    with run_folder.prepared(run, corpora):
        (run.output / "model").mkdir()
        (run.output / run_lock.FINISHED).write_text("{}")
    assert done == [*["left"] * 3, (run.output / "model", "me/x")]
    with run_folder.prepared(*plan(overwrite=True)):
        (run.output / "model").mkdir()
        (run.output / run_lock.FINISHED).write_text("{}")
    assert len(done) == 5


def test_a_finished_run_is_refused_and_untouched(plan: Prepare, tmp_path: Path) -> None:
    fill(tmp_path / "run")
    (tmp_path / "run/model/config.json").write_text("{}")
    before = names(tmp_path / "run")
    with (
        pytest.raises(ConfigError, match=r"holds a finished result \(model/config.json\)"),
        run_folder.prepared(*plan()),
    ):
        pass
    assert names(tmp_path / "run") == before
    with run_folder.prepared(*plan(overwrite=True)):
        assert not (tmp_path / "run/model").exists()


def test_a_folder_that_another_run_holds_is_refused_and_untouched(
    plan: Prepare, tmp_path: Path
) -> None:
    fill(tmp_path / "run")
    run, corpora = plan(overwrite=True)
    with run_lock.held(run.output):
        before = names(run.output)
        with (
            pytest.raises(ConfigError, match="a run is at work there"),
            run_folder.prepared(run, corpora),
        ):
            pass
        assert names(run.output) == before


def test_a_damaged_shard_is_refused_before_anything_is_cleared(
    plan: Prepare, tiny_corpus: Path, tmp_path: Path
) -> None:
    fill(tmp_path / "run")
    copy = shutil.copytree(tiny_corpus, tmp_path / "copy")
    shard = copy / "held_out/shards/00001-000.pos.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with (
        pytest.raises(CorpusError, match=shard.name),
        run_folder.prepared(*plan(corpus=copy, overwrite=True)),
    ):
        pass
    assert (tmp_path / "run/checkpoints/step-3").is_dir()
    assert run_lock.holder(tmp_path / "run") is None, "what is refused lets go"


def test_the_watchdog_comes_before_the_collectives(
    plan: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(run_folder, "join_processes", waited.append)
    train = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1e-3}
    with run_folder.prepared(*plan(train=train | {"timeout_seconds": 60.0})):
        pass
    assert waited == [90.0]


def test_the_processes_part_whatever_happens(
    plan: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    monkeypatch.setattr(run_folder, "join_processes", lambda _: True)
    monkeypatch.setattr(run_folder, "leave_processes", lambda: left.append("left"))
    with pytest.raises(RuntimeError, match="in training"), run_folder.prepared(*plan()):
        raise RuntimeError("in training")
    assert left == ["left"]
