"""The work folder: what it holds, and the move of a complete corpus."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lert_ds import files
from lert_ds.corpus.work import Work, total

MakeWork = Callable[..., Work]


@pytest.fixture
def work(make_work: MakeWork, tmp_path: Path) -> Work:
    (tmp_path / "a.txt").write_text("我爱北京。", "utf-8")
    return make_work(input=str(tmp_path / "a.txt"))


def test_another_process_reads_plan_and_configuration(work: Work) -> None:
    other = Work(work.root)
    assert other.plan == work.plan
    assert other.config.max_length == 16
    assert other.output == other.config.output
    assert other.tag_sets["pos"][0] == "n"


def test_records_are_in_the_order_of_the_plan(work: Work) -> None:
    work.record("stage", 0, {"a": 1})
    assert list(work.records("stage")) == [{"a": 1}]
    assert total(iter([{"a": 1}, {"a": 2, "b": 1}])) == {"a": 3, "b": 1}


@pytest.mark.parametrize("stopped", ["not", "before the move"])
@pytest.mark.parametrize("exchanging", [True, False])
def test_installing_replaces_the_output_whenever_it_was_stopped(
    work: Work, stopped: str, exchanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanging:  # as on a disk of a network
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    work.corpus.mkdir()
    (work.corpus / "manifest.json").write_text("new")
    work.output.mkdir()
    (work.output / "manifest.json").write_text("old")
    if stopped != "not":
        (work.root / "finished").touch()
    work.install()
    assert (work.output / "manifest.json").read_text() == "new"
    assert work.finished
    assert not work.corpus.exists()
    assert sorted(path.name for path in work.root.parent.glob("*corpus*")) == [
        "corpus",
        "corpus.work",
    ]
    work.install()  # again, it does nothing
    assert (work.output / "manifest.json").read_text() == "new"


def test_what_is_no_longer_complete_is_open_again(work: Work) -> None:
    (work.root / "finished").touch()
    work.reopen()
    work.reopen()
    assert not work.finished
