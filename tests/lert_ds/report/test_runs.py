"""Run folders: what belongs to a run, how runs are named, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lert_ds.errors import UserError
from lert_ds.report.runs import read_run, read_runs


def write_run(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.5}\n')
    for name, tree in {"config": {"seed": 1}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))
    return folder


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", summary={"baselines": {"mlm/loss": {"unigram": 6}}})
    (folder / "model").mkdir()
    (folder / "model" / "run.json").write_text('{"parameters": 12}')
    run = read_run(folder, "a")
    assert run.config == {"seed": 1}
    assert run.baselines == {"mlm/loss": {"unigram": 6.0}}
    assert run.origin == {"parameters": 12}
    assert run.metrics.curves["loss"]["train"].values.tolist() == [2.5]
    assert run.notes == ()


def test_a_run_that_is_not_finished_has_metrics_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "config.json").unlink()
    run = read_run(folder, "a")
    assert run.config == run.summary == run.origin == run.baselines == {}
    assert "no config.json" in run.notes[0]


def test_names_are_the_shortest_that_tell_runs_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("x/large", "y/large", "y/small")]
    assert [run.name for run in read_runs(folders)] == ["x/large", "y/large", "y/small"]
    assert [run.name for run in read_runs(folders[1:])] == ["large", "small"]


def test_a_run_named_by_a_dot_has_its_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_run(tmp_path / "here"))
    assert read_runs([Path()])[0].name == "here"


def test_a_run_named_twice_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    with pytest.raises(UserError, match=r"a/\.\./a: the run is named twice"):
        read_runs([folder, folder / ".." / "a"])


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: it is a file"):
        read_runs([tmp_path / "file"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/metrics\.jsonl: there is no such file"):
        read_runs([tmp_path / "empty"])


@pytest.mark.parametrize("name", ["config.json", "summary.json", "model/run.json"])
def test_a_broken_json_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "model").mkdir()
    (folder / name).write_text("[1, 2]")
    with pytest.raises(UserError, match=rf"a/{name}: not a JSON object"):
        read_run(folder, "a")


@pytest.mark.parametrize("baselines", [[6.1], {"mlm/loss": 6.1}, {"mlm/loss": {"unigram": "6.1"}}])
def test_baselines_of_another_shape_are_refused(tmp_path: Path, baselines: object) -> None:
    folder = write_run(tmp_path / "a", summary={"baselines": baselines})
    with pytest.raises(UserError, match=r'summary\.json: "baselines"'):
        read_run(folder, "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "config.json").chmod(0)
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        read_run(folder, "a")


@pytest.mark.parametrize("name", ["masks.safetensors", "report.json"])
def test_a_folder_of_no_training_is_told_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}", "utf-8")
    with pytest.raises(UserError, match="has no curves; name the folder of a training"):
        read_runs([tmp_path])
