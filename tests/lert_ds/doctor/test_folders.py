from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds.doctor import folders

READ_ONLY = "/proc"


def test_the_output_is_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    told = folders.output_facts(str(tmp_path / "a" / "b"))
    assert told["place"] == str(tmp_path)
    assert told["refused"] is None
    assert told["free_bytes"] > 0
    assert not told["finished"]
    assert list(tmp_path.iterdir()) == []  # nothing is left, and no folder was made


def test_a_finished_result_and_its_checkpoints_are_seen(tmp_path: Path) -> None:
    for name, size in (("model/config.json", 2), ("checkpoints/step-1/a", 100)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
    told = folders.output_facts(str(tmp_path))
    assert told["finished"]
    assert told["checkpoint_bytes"] == 100


def test_what_cannot_be_written_is_told() -> None:
    # Not by permissions, which do not bind root: by a file system that takes no files.
    told = folders.output_facts(f"{READ_ONLY}/run")
    assert told["refused"]


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    assert folders.output_facts(str(tmp_path / "file" / "run"))["is_file"]


def test_a_mark_is_seen_where_it_is_written_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "SEEN_WITHIN_SECONDS", 0.0)
    mark = folders.write_mark(str(tmp_path / "run"))["path"]
    assert folders.see_mark(mark) == {"seen": True}
    folders.remove_mark(mark)
    assert folders.see_mark(mark) == {"seen": False}
    other = tmp_path / "precious"
    other.write_text("", "utf-8")
    folders.remove_mark(str(other))
    assert other.is_file()


def test_a_whole_corpus_has_every_shard_verified(tiny_corpus: Path) -> None:
    told = folders.corpus_facts([str(tiny_corpus)], 60)
    assert told["shards"] == told["verified"] == 2
    assert told["instances"] == 64
    other = folders.corpus_facts([str(tiny_corpus / "held_out")], 60)
    assert other["manifest"] != told["manifest"]
    assert folders.corpus_facts([str(tiny_corpus)], 0)["verified"] == 0  # no time


def test_a_flipped_byte_and_a_missing_shard_are_named(
    tmp_path: Path, copy_corpus: Callable[[Path], Path]
) -> None:
    flipped = copy_corpus(tmp_path / "flipped")
    shard = flipped / "shards" / "00001-000.pos.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "00001-000.pos.npy" in folders.corpus_facts([str(flipped)], 60)["wrong"]
    lacking = copy_corpus(tmp_path / "lacking")
    (lacking / "shards" / "00000-000.ner.npy").unlink()
    assert "00000-000.ner.npy" in folders.corpus_facts([str(lacking)], 60)["wrong"]
    assert "no such corpus" in folders.corpus_facts([str(tmp_path / "none")], 60)["wrong"]


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    told: dict[str, Any] = folders.missing([str(tmp_path), str(tmp_path / "none")])
    assert told == {"missing": [str(tmp_path / "none")]}


def test_a_temporary_folder_that_cannot_be_written_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", READ_ONLY)
    monkeypatch.setattr("tempfile.tempdir", None)
    told = folders.temporary_facts()
    assert told["named"] == READ_ONLY
    assert told["path"] != READ_ONLY
