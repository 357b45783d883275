"""What a report finds in the folders that it is asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lert_ds.errors import UserError
from lert_ds.report.folders import read_folders

Write = Callable[..., Path]
WriteSeed = Callable[[Path, int], Path]


def test_a_fine_tuning_gives_a_row_and_the_curves_of_its_seeds(
    tmp_path: Path, write_finetune: Write, write_seed: WriteSeed
) -> None:
    folder = write_finetune(tmp_path / "a")
    for number in (1, 2):
        write_seed(folder, number)
    found = read_folders([folder])
    assert [one.name for one in found.finetunes] == ["a"]
    assert [run.name for run in found.runs] == ["seed-1", "seed-2"]
    assert found.names == ["a"]


def test_one_that_goes_on_gives_curves_alone(tmp_path: Path, write_seed: WriteSeed) -> None:
    write_seed(tmp_path / "a", 1)
    found = read_folders([tmp_path / "a"])
    assert not found.finetunes
    assert [run.name for run in found.runs] == ["seed-1"]


def test_a_folder_of_several_gives_rows_alone_and_each_once(
    tmp_path: Path, write_finetune: Write, write_seed: WriteSeed
) -> None:
    write_seed(write_finetune(tmp_path / "runs" / "a"), 1)
    write_finetune(tmp_path / "runs" / "b", "tnews")
    found = read_folders([tmp_path / "runs", tmp_path / "runs" / "b"])
    assert [one.name for one in found.finetunes] == ["a", "b"]
    assert not found.runs


def test_what_is_nothing_keeps_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: there is no such file"):
        read_folders([tmp_path])
    with pytest.raises(UserError, match="there is no such folder"):
        read_folders([tmp_path / "none"])
