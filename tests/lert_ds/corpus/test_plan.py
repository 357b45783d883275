"""Splits: they cover the files, meet at documents, and follow from the input alone."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lert_ds.corpus.plan import (
    Plan,
    load_plan,
    make_plan,
    read_options,
    refuse_another_plan,
    save_plan,
)
from lert_ds.corpus.read import read_documents
from lert_ds.corpus.settings import PrepareConfig
from lert_ds.errors import ConfigError

Make = Callable[..., PrepareConfig]


def documents_of(config: PrepareConfig, plan: Plan) -> list[str]:
    return [
        document.text.strip("\n")
        for split in plan.splits
        for document in read_documents(split, read_options(config), Counter())
    ]


TEXT = "\n\n".join(f"第{i}篇。\n" + "字" * (i * 7 % 50) for i in range(300))
LINES = "".join(json.dumps({"text": f"第{i}行" + "字" * (i % 40)}) + "\n" for i in range(300))
MARKED = "".join(f"# newdoc\n1\t{i}\n\n1\tb\n\n\n" for i in range(200))
UNMARKED = "".join(f"1\t{i}\n2\tb\n\n" for i in range(200))
ANNOTATED = "".join(json.dumps({"words": [str(i)], "doc": i // 7}) + "\n" for i in range(300))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", TEXT, "jieba"),
        ("a.txt", TEXT.replace("\n", "\r\n"), "jieba"),
        ("a.jsonl", LINES, "jieba"),
        ("a.conllu", MARKED, "conllu"),
        ("a.conllu", UNMARKED, "conllu"),
        ("a.jsonl", ANNOTATED, "precomputed"),
    ],
)
@pytest.mark.parametrize("split_bytes", [150, 1000])
def test_splits_part_a_file_between_its_documents(
    tmp_path: Path, make_config: Make, name: str, content: str, kind: str, split_bytes: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    whole = make_config(input=str(path), annotator={"kind": kind})
    parted = make_config(
        input=str(path), annotator={"kind": kind}, split_megabytes=split_bytes / 1e6
    )
    one, many = make_plan(whole), make_plan(parted)
    assert one.tasks == 1
    assert many.tasks > 1
    ends = [split.end for split in many.splits]
    assert [split.start for split in many.splits] == [0, *ends[:-1]]
    assert ends[-1] == path.stat().st_size
    assert documents_of(parted, many) == documents_of(whole, one)


def test_text_without_blank_lines_is_parted_at_line_ends(tmp_path: Path, make_config: Make) -> None:
    path = tmp_path / "a.txt"
    path.write_text("字" * 50 + "\n" + "一行。\n" * 2000, "utf-8")
    config = make_config(input=str(path), split_megabytes=0.003, document_characters=100)
    plan = make_plan(config)
    assert plan.tasks == 7
    assert "\n".join(documents_of(config, plan)) == path.read_text("utf-8").strip()


def test_a_file_of_one_line_is_one_split(tmp_path: Path, make_config: Make) -> None:
    path = tmp_path / "a.txt"
    path.write_text("字" * 300_000, "utf-8")
    assert make_plan(make_config(input=str(path), split_megabytes=0.1)).tasks == 1


def test_tables_are_parted_at_row_groups_and_compressed_files_are_not(
    tmp_path: Path, make_config: Make
) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"第{i}行" for i in range(100)]})
    pyarrow.parquet.write_table(table, path, row_group_size=10)
    config = make_config(input=str(path), split_megabytes=1e-6)
    plan = make_plan(config)
    assert [(split.start, split.end) for split in plan.splits] == [(i, i + 1) for i in range(10)]
    assert documents_of(config, plan) == table.column("text").to_pylist()
    import gzip

    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    config = make_config(input=str(packed), split_megabytes=1e-6)
    assert make_plan(config).tasks == 1
    assert len(documents_of(config, make_plan(config))) == 300


def test_a_plan_survives_its_file_and_tells_what_changed(tmp_path: Path, make_config: Make) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, "utf-8")
    plan = make_plan(make_config(input=str(path)))
    save_plan(tmp_path, plan)
    assert load_plan(tmp_path) == plan
    refuse_another_plan(tmp_path, make_plan(make_config(input=str(path), executor={"workers": 2})))
    with pytest.raises(ConfigError, match=r"begun with max_length = 16, now it is 32; delete"):
        refuse_another_plan(tmp_path, make_plan(make_config(input=str(path), max_length=32)))
    path.write_text(TEXT + "!", "utf-8")
    with pytest.raises(ConfigError, match=r"input changed \(.*a.txt\).*overwrite=true"):
        refuse_another_plan(tmp_path, make_plan(make_config(input=str(path))))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match=r"plan.json: it cannot be read"):
        refuse_another_plan(tmp_path, plan)
