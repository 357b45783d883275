"""The table of results: its columns, rows and cells, and what is said below it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds.report.finetune_results import Finetune, read_finetune
from lert_ds.report.scoreboard import OWN, Cell, scoreboard

Make = Callable[..., Finetune]


@pytest.fixture
def make(tmp_path: Path, write_finetune: Callable[..., Path]) -> Make:
    count = iter(range(100))

    def read(*words: Any, **changes: Any) -> Finetune:
        name = changes.pop("name", f"run-{next(count)}")
        return read_finetune(write_finetune(tmp_path / name, *words, **changes))

    return read


def test_cells_are_the_best_and_the_mean_in_percent(make: Make) -> None:
    board = scoreboard([make("ocnli", scores={"dev": [0.7, 0.71, 0.7549]})])
    (own, *published) = board.groups
    assert own.title == OWN
    assert own.is_own
    assert own.rows == [("lert-small/model, 3 seeds", [Cell("75.5 (72.2)")])]
    assert board.heads == [("OCNLI dev", "accuracy")]
    assert not any(group.is_own for group in published)
    rows = {row.name: row.cells for group in published for row in group.rows}
    (cell,) = rows["LERT-base"]
    assert cell is not None
    assert cell.text == "78.2 (77.5)"
    assert board.footnotes[cell.notes[0] - 1].startswith("README of LERT, https://github.com/")
    assert "RBTL3" not in rows  # it has nothing on OCNLI
    assert "best and in brackets the mean of 3 seeds on the dev set." in board.says


def test_models_that_were_published_on_another_split_are_named(make: Make) -> None:
    told = "Published on other splits alone: RBTL3, LERT-small."
    assert told in scoreboard([make("bq", scores={"dev": [0.7]})]).says
    assert "other splits" not in scoreboard([make("ocnli")]).says


def test_both_metrics_of_reading_comprehension(make: Make) -> None:
    board = scoreboard([make("cmrc2018", scores={"dev": [0.5]})])
    assert board.heads == [("CMRC 2018 dev", "EM / F1")]
    assert board.groups[0].rows[0].cells == [Cell("50.0 (50.0) / 50.0 (50.0)")]
    assert "of one seed both are its own" in board.says


def test_columns_are_those_of_the_results_in_the_paper_s_order(make: Make) -> None:
    both = {"dev": [0.9], "test": [0.8]}
    board = scoreboard(
        [make("ocnli"), make("drcd", scores=both), make("chnsenticorp", scores=both)]
    )
    assert [title for title, _ in board.heads] == [
        "DRCD dev", "DRCD test", "ChnSentiCorp dev", "ChnSentiCorp test", "OCNLI dev",
    ]  # fmt: skip
    (row,) = board.groups[0].rows
    assert row.name == "lert-small/model, 1 to 3 seeds"
    assert [cell is None for cell in row.cells] == [False] * 5


def test_a_model_has_one_row_and_another_model_another(make: Make) -> None:
    runs = [make("ocnli"), make("tnews"), make("ocnli", "hfl/chinese-lert-base")]
    rows = scoreboard(runs).groups[0].rows
    assert [row.name for row in rows] == [
        "lert-small/model, 3 seeds", "hfl/chinese-lert-base, 3 seeds",
    ]  # fmt: skip
    assert [[cell is None for cell in row.cells] for row in rows] == [[False, False], [True, False]]


def test_models_whose_names_end_alike_are_told_apart(make: Make) -> None:
    rows = scoreboard([make("ocnli", "a/x/model"), make("ocnli", "b/x/model")]).groups[0].rows
    assert [row.name for row in rows] == ["a/x/model, 3 seeds", "b/x/model, 3 seeds"]


def test_the_same_model_on_the_same_task_again_has_a_row_with_its_folder(make: Make) -> None:
    runs = [make("ocnli", name="first"), make("ocnli", name="hotter", scores={"dev": [0.6]})]
    rows = scoreboard(runs).groups[0].rows
    assert [row.name for row in rows] == [
        "lert-small/model in first, 3 seeds", "lert-small/model in hotter, 1 seed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        ("ocnli", {"files": {"train": "train.3k.json", "dev": "dev.json"},
                   "examples": {"train": 2998}},
         ["OCNLI: trained on 2,998 examples of train.3k.json, where the task has 50,000"]),
        ("peopledaily", {"files": {"train": "train.txt.gz"}, "examples": {"train": 45_592}},
         ["People's Daily dev: held out from train.txt.gz, the owners' set is another",
          "People's Daily: trained on 45,592 examples of train.txt.gz, where the task has 50,658"]),
        ("tnews", {"files": {"train": "train.json", "dev": "mine.json"}},
         ["TNEWS dev: read from mine.json, not the owners' file of that split"]),
        ("cmrc2018", {"files": {"train": "train.json", "dev": "dev.json.gz"},
                      "examples": {"train": 10_142}}, []),
    ],
)  # fmt: skip
def test_what_differs_from_the_owners_data_is_told(
    make: Make, task: str, changes: dict[str, Any], told: list[str]
) -> None:
    board = scoreboard([make(task, **changes)])
    (cell,) = board.groups[0].rows[0].cells
    assert cell is not None
    assert [board.footnotes[number - 1] for number in cell.notes] == told


def test_a_split_that_nobody_published_has_own_rows_alone(make: Make) -> None:
    board = scoreboard([make("msra", files={"train": "train.txt"})])
    assert [group.title for group in board.groups] == [OWN]
