"""The command: what it writes, what it leaves, and what it uploads."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lert_ds import cli, hub_upload, model_card

Run = Callable[[Sequence[str]], tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, write_filler: Any) -> Path:
    (tmp_path / "tiny").mkdir()
    write_filler(tmp_path / "tiny" / "model")
    return tmp_path / "tiny" / "model"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(arguments: Sequence[str]) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(["card", *arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def push(*given: Any, **options: Any) -> str:
        calls.append((*given, options))
        return "https://huggingface.co/me/x"

    monkeypatch.setattr(hub_upload, "push", push)
    return calls


def test_a_card_is_written_and_refreshed(folder: Path, run: Run, pushed: list[Any]) -> None:
    path = folder / "README.md"
    first = path.read_text("utf-8")
    path.unlink()
    assert run([str(folder)])[:2] == (0, f"{path}\n")
    assert path.read_text("utf-8") == first
    (folder / "run.json").write_text(json.dumps({"config": {"lip": {}}}), "utf-8")
    assert run([str(folder)])[0] == 0
    assert "from random weights" in path.read_text("utf-8")
    assert not pushed


def test_an_edited_card_stays(folder: Path, run: Run, pushed: list[Any]) -> None:
    path = folder / "README.md"
    for mine in (path.read_bytes() + b"\nMore.\n", b"\xff\xfe"):
        path.write_bytes(mine)
        code, out, err = run([str(folder)])
        assert (code, out) == (2, "")
        assert "README.md: somebody has edited it; say --overwrite" in err
        assert run([str(folder), "--push-to-hub", "me/x"])[0] == 0
        assert path.read_bytes() == mine
    assert len(pushed) == 2
    assert run([str(folder), "--overwrite"])[0] == 0
    assert not model_card.is_edited(path.read_text("utf-8"))


def test_upload(folder: Path, run: Run, pushed: list[Any]) -> None:
    options = ["--push-to-hub", "me/x", "--private", "--revision", "v1"]
    code, out, _ = run([str(folder), *options])
    assert code == 0
    assert out.splitlines()[-1] == "https://huggingface.co/me/x"
    assert pushed == [(folder, "me/x", {"private": True, "revision": "v1"})]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--private"], "--private: there is nothing to upload; say --push-to-hub NAME too"),
        (["--revision", "x"], "--revision: there is nothing to upload"),
        (["--push-to-hub", "a/b/c"], "a/b/c: this is no name on the Hugging Face hub"),
    ],
)
def test_bad_input(
    options: list[str], message: str, folder: Path, run: Run, pushed: list[Any]
) -> None:
    before = (folder / "README.md").stat().st_mtime_ns
    code, out, err = run([str(folder), *options])
    assert (code, out) == (2, "")
    assert message in err
    assert (folder / "README.md").stat().st_mtime_ns == before
    assert not pushed


def test_a_folder_that_holds_no_model(tmp_path: Path, run: Run) -> None:
    code, _, err = run([str(tmp_path)])
    assert code == 2
    assert "no config.json, so it is no model folder" in err
    assert not list(tmp_path.iterdir())
