"""What a task has written is believed only where it is still so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lert_ds.corpus.outputs import (
    BEGIN,
    FINISH,
    damaged,
    forget_damaged,
    is_installed,
    record,
)
from lert_ds.corpus.work import Work

MakeWork = Callable[..., Work]


@pytest.fixture
def work(make_work: MakeWork, tmp_path: Path) -> Work:
    (tmp_path / "a.txt").write_text("我爱北京。", "utf-8")
    work = make_work(input=str(tmp_path / "a.txt"))
    (work.root / "annotated").mkdir()
    for name in ("00000.json", "00000.jsonl.zst", "00001.json", ".00000.json.0.1.part"):
        (work.root / "annotated" / name).write_text(name)
    completions = work.root / "logs" / "annotate" / "completions"
    completions.mkdir(parents=True)
    (completions / "00000").touch()
    record(work, "annotate", 0)
    return work


def test_what_is_as_it_was_is_believed(work: Work) -> None:
    assert damaged(work, "annotate", 0) is None
    assert damaged(work, BEGIN) is None
    assert forget_damaged(work, ["annotate"]) == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    path.write_bytes(b"X" + path.read_bytes()[1:])


@pytest.mark.parametrize("spoil", [cut, change, Path.unlink])
def test_what_is_not_is_done_again(
    work: Work, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(work.root / "annotated" / "00000.jsonl.zst")
    assert damaged(work, "annotate", 0) == "annotated/00000.jsonl.zst"
    assert forget_damaged(work, ["annotate"]) == 1
    assert not list((work.root / "logs/annotate/completions").iterdir())
    assert "00000.jsonl.zst: it is not as it was written; it is made again" in caplog.text


@pytest.mark.parametrize("text", [None, "", "[]", '{"annotated/00000.json": 3}', "{"])
def test_a_record_that_is_none_vouches_for_nothing(work: Work, text: str | None) -> None:
    path = work.root / "done/annotate/00000.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert damaged(work, "annotate", 0) is not None


def test_other_tasks_and_parts_are_not_recorded(work: Work) -> None:
    assert set(work.read("done/annotate/00000.json")) == {
        "annotated/00000.json",
        "annotated/00000.jsonl.zst",
    }


def test_annotations_that_were_moved_are_found(work: Work) -> None:
    (work.corpus / "annotated").mkdir(parents=True)
    moved = work.root / "annotated" / "00000.jsonl.zst"
    moved.rename(work.corpus / "annotated" / moved.name)
    assert damaged(work, "annotate", 0) is None


def test_an_installed_corpus_is_known_by_its_bytes(work: Work) -> None:
    work.corpus.mkdir()
    (work.corpus / "manifest.json").write_text("new")
    assert not is_installed(work)
    record(work, FINISH)
    assert not is_installed(work)
    work.output.mkdir()
    (work.output / "manifest.json").write_text("old")
    assert not is_installed(work)
    work.install()
    assert is_installed(work)
