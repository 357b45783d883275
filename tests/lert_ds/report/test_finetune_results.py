"""Folders of fine-tunings: told from others, found below one, and refused where broken."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds.errors import UserError
from lert_ds.report.finetune_results import (
    finetunes_below,
    is_finetune,
    read_finetune,
    seeds_of,
)

Write = Callable[..., Path]


def test_a_fine_tuning_is_read(tmp_path: Path, write_finetune: Write) -> None:
    folder = write_finetune(tmp_path / "a", "cmrc2018", scores={"dev": [0.5, 0.75]})
    assert is_finetune(folder)
    found = read_finetune(folder)
    assert (found.name, found.task.name, found.start) == ("a", "cmrc2018", "runs/lert-small/model")
    assert found.seeds == 2
    assert found.score("dev", "em") == (0.75, 0.625)
    assert found.score("test", "em") is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": "benchmark"}'])
def test_what_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert not is_finetune(tmp_path)
    assert not is_finetune(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "iflytek"}, "task = 'iflytek' is none"),
        ({"task": ["ocnli"]}, "task = ['ocnli'] is none"),
        ({"start": ""}, "start names no model"),
        ({"seeds": []}, "seeds lists none"),
        ({"files": None}, "files is no object"),
        ({"examples": []}, "examples is no object"),
        ({"scores": {}}, "scores has neither dev nor test"),
        ({"scores": {"dev": {"f1": {}}}}, "scores.dev.accuracy has no max and mean"),
        ({"scores": {"dev": {"accuracy": {"max": 71, "mean": 70}}}}, "scores.dev.accuracy has no"),
        ({"scores": {"dev": {"accuracy": {"max": True, "mean": 0}}}}, "scores.dev.accuracy has no"),
    ],
)
def test_a_broken_summary_is_told(
    tmp_path: Path, write_finetune: Write, changes: dict[str, Any], told: str
) -> None:
    folder = write_finetune(tmp_path / "a")
    record = json.loads((folder / "summary.json").read_text("utf-8"))
    (folder / "summary.json").write_text(json.dumps(record | changes), "utf-8")
    with pytest.raises(UserError, match=re.escape(told)) as error:
        read_finetune(folder)
    assert str(error.value).startswith(f"{folder / 'summary.json'}: ")
    assert "\n" not in str(error.value)


def test_several_are_found_below_a_folder(tmp_path: Path, write_finetune: Write) -> None:
    b = write_finetune(tmp_path / "b")
    deeper = write_finetune(tmp_path / "small" / "ocnli")
    write_finetune(tmp_path / "x" / "y" / "too-deep")
    write_finetune(b / "copy")  # inside one: not looked for
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("")
    assert finetunes_below(tmp_path) == [b, deeper]
    assert finetunes_below(b) == []
    assert finetunes_below(tmp_path / "pretrain") == []
    assert finetunes_below(tmp_path / "none") == []


def test_seeds_come_in_the_order_of_their_numbers(
    tmp_path: Path, write_seed: Callable[[Path, int], Path]
) -> None:
    wanted = [write_seed(tmp_path, number) for number in (1, 2, 10)]
    (tmp_path / "seed-3").mkdir()  # no metrics yet
    (tmp_path / "seed-x").mkdir()
    assert seeds_of(tmp_path) == wanted
    assert seeds_of(tmp_path / "none") == []
