"""Files are whole or absent, and a finished result is not written over."""

import hashlib
import json
import os
from pathlib import Path
from typing import IO

import pytest

from lert_ds import files
from lert_ds.errors import ConfigError


class DiskFullError(OSError):
    """What a writer meets half-way."""


def _write_half_a_folder(folder: Path) -> None:
    (folder / "a.txt").write_text("half")
    raise DiskFullError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _write_half(file: IO[bytes]) -> None:
    file.write(b"half")
    raise DiskFullError


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with pytest.raises(DiskFullError):
        files.write_whole(path, _write_half)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.json"]


def test_a_writer_that_fails_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError):
        files.write_whole(tmp_path / "file.json", _write_half)
    assert names(tmp_path) == []


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen: list[bytes] = []

    def write(file: IO[bytes]) -> None:
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    files.write_whole(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    files.write_whole(tmp_path / "file", lambda file: file.write(b"new"))
    assert order == ["fsync", "rename", "fsync"]  # the file, its name, the folder


def test_json_is_readable_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    tree = {"名": ["甲", 1, None], "inner": {"rate": 1e-4}}
    files.write_json(path, tree)
    text = path.read_text("utf-8")
    assert json.loads(text) == tree
    assert '"名": [\n' in text
    assert text.endswith("}\n")


def test_what_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"new": object()})
    assert json.loads(path.read_text("utf-8")) == {"old": 1}


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000)
    assert files.sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_finished_result_is_refused_unless_told_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    with pytest.raises(ConfigError) as caught:
        files.refuse_finished(tmp_path, "model/config.json", overwrite=False)
    assert str(caught.value) == (
        f"output = {tmp_path}: it holds a finished result (model/config.json); "
        "name another folder or say overwrite=true"
    )
    files.refuse_finished(tmp_path, "model/config.json", overwrite=True)


def test_an_absent_or_unfinished_folder_is_taken(tmp_path: Path) -> None:
    files.refuse_finished(tmp_path / "new", "manifest.json", overwrite=False)
    (tmp_path / "shard.npy").touch()
    files.refuse_finished(tmp_path, "manifest.json", overwrite=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_folders_place_is_refused(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "output"
    path.write_text("precious", "utf-8")
    with pytest.raises(ConfigError, match="it is a file; name a folder"):
        files.refuse_finished(path, "manifest.json", overwrite)
    assert path.read_text("utf-8") == "precious"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "result"
    with files.write_whole_folder(folder) as place:
        (place / "inner").mkdir()
        (place / "inner" / "a.txt").write_text("first")
    with pytest.raises(DiskFullError), files.write_whole_folder(folder) as place:
        _write_half_a_folder(place)
    assert (folder / "inner" / "a.txt").read_text() == "first"
    with files.write_whole_folder(folder) as place:
        (place / "b.txt").write_text("second")
    assert [path.name for path in folder.iterdir()] == ["b.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["result"]


def test_what_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    files.refuse_unwritable(tmp_path / "new" / "folder", "output")
    files.refuse_unwritable(tmp_path / "file", "table")  # it is replaced
    with pytest.raises(ConfigError, match=r"output = .*below: .*file is a file; name another"):
        files.refuse_unwritable(tmp_path / "file" / "below", "output")
    with pytest.raises(ConfigError, match=r"scoring\.file = .*: /dev/null is a file"):
        files.refuse_unwritable(Path("/dev/null/scores"), "scoring.file")


def test_files_of_a_folder_can_be_read_by_others(tmp_path: Path) -> None:
    with files.write_whole_folder(tmp_path / "new") as folder:
        (folder / "secret").write_text("", "utf-8")
        (folder / "secret").chmod(0o600)
    plain = tmp_path / "plain"
    plain.write_text("", "utf-8")
    assert (tmp_path / "new" / "secret").stat().st_mode == plain.stat().st_mode
