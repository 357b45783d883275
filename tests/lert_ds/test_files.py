"""Files are whole or absent, and a finished result is not written over."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from safetensors.numpy import save_file

from lert_ds import files
from lert_ds.errors import ConfigError, UserError


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


def test_json_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "planted-token")
    files.write_json(tmp_path / "file.json", {"a": ["planted-token"]})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": ["[MY_TOKEN]"]}
    files.write_json(tmp_path / "file.json", {"a": ["planted-token"]}, exact=True)
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": ["planted-token"]}


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


NAMES = ["model.safetensors", "onnx/model.onnx", "a..b", ".hidden", "名"]
LEAVING = ["../x", "/etc/passwd", "a/../../x", "..", ".", "", "a\0b", None, 3, "..\\x", "a/.."]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_stays_is_taken(tmp_path: Path, name: str) -> None:
    assert files.inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", LEAVING)
def test_a_name_that_leaves_its_folder_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(UserError, match=r"a file in it names .*, which leaves the folder"):
        files.inside(tmp_path, name)


def test_links_out_of_the_folder_are_refused_where_they_matter(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").touch()
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "real").touch()
    (folder / "in").symlink_to("real")
    assert files.inside(folder, "out") == folder / "out"  # as in the cache of the hub
    assert files.inside(folder, "in", links=False) == folder / "in"
    with pytest.raises(UserError, match="'out', which leaves the folder"):
        files.inside(folder, "out", links=False)
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    assert files.inside(tmp_path / "link", "real", links=False).exists()


KILLED = """
import os, sys
from pathlib import Path
from lert_ds import files
place = Path(sys.argv[1])
def die(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
if sys.argv[2] == "file":
    files.write_whole(place, die)
elif sys.argv[2] == "folder":
    with files.write_whole_folder(place) as folder:
        (folder / "a").write_text("half")
        os.kill(os.getpid(), 9)
else:
    files.exchange = lambda one, other: False
    replace = Path.replace
    def stop(self, target):
        replace(self, target)
        if str(target).endswith(".old"):
            os.kill(os.getpid(), 9)
    Path.replace = stop
    with files.write_whole_folder(place) as folder:
        (folder / "a").write_text("new")
"""


def killed(place: Path, what: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(place), what], check=False)
    assert done.returncode == -9


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_killed_process_left_is_swept(tmp_path: Path, what: str) -> None:
    (tmp_path / "deep").mkdir()
    place = tmp_path / "deep" / "result"
    killed(place, what)
    (left,) = names(tmp_path / "deep")
    assert left.startswith(".result.")
    assert files.sweep(tmp_path / "deep", "other") == []
    assert files.sweep(tmp_path) == []  # not that deep
    assert [path.name for path in files.sweep(tmp_path, deep=True)] == [left]
    assert names(tmp_path / "deep") == []


def test_a_new_folder_sweeps_what_was_left_of_the_last_try(tmp_path: Path) -> None:
    killed(tmp_path / "result", "folder")
    with files.write_whole_folder(tmp_path / "result"):
        pass
    assert names(tmp_path) == ["result"]


def test_a_folder_that_a_kill_took_from_its_place_is_put_back(tmp_path: Path) -> None:
    place = tmp_path / "result"
    place.mkdir()
    (place / "a").write_text("old")
    killed(place, "between the renames")
    assert not place.exists()
    files.sweep(tmp_path)
    assert names(tmp_path) == ["result"]
    assert (place / "a").read_text() == "old"


def test_parts_of_the_living_and_of_other_machines_stay(tmp_path: Path) -> None:
    mine = files._beside(tmp_path / "mine", "part")
    mine.touch()
    theirs = tmp_path / ".theirs.0a1b2c3d.1.part"
    theirs.mkdir()
    (tmp_path / ".gitignore").touch()
    (tmp_path / ".notes.part").touch()
    assert files.sweep(tmp_path) == []
    yesterday = time.time() - 90_000
    for path in (theirs, mine):
        os.utime(path, (yesterday, yesterday))
    (theirs / "file").touch()  # somebody writes there
    assert files.sweep(tmp_path) == []
    os.utime(theirs / "file", (yesterday, yesterday))
    os.utime(theirs, (yesterday, yesterday))
    assert files.sweep(tmp_path) == [theirs]
    assert mine.exists()


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_folder_is_replaced_on_any_disk(
    tmp_path: Path, exchanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanging:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    files.replace_folder(tmp_path / "new", tmp_path / "place")
    assert names(tmp_path) == ["place"]
    assert (tmp_path / "place" / "a").read_text() == "new"
    files.remove_folder(tmp_path / "place")
    assert names(tmp_path) == []


def test_an_exchange_leaves_no_moment_without(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_text(name)
    if not files.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange two names")
    assert (tmp_path / "one").read_text() == "other"
    assert not files.exchange(tmp_path / "one", tmp_path / "nowhere")


@pytest.mark.parametrize(("mask", "mode"), [(0o002, 0o664), (0o077, 0o600), (0o022, 0o644)])
def test_the_umask_decides_who_reads(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        assert files.umask() == mask
        with files.write_whole_folder(tmp_path / "folder") as folder:
            save_file({"a": np.zeros(1)}, folder / "a.safetensors")  # it makes them 0600
            (folder / "deep").mkdir()
            (folder / "deep" / "secret").touch(0o600)
        files.write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    for name in ("folder/a.safetensors", "folder/deep/secret", "a.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name
    assert (tmp_path / "folder").stat().st_mode & 0o777 == mode | (mode >> 2 & 0o111)


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def write(_: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*shard\.npy"):
        files.write_whole(tmp_path / "shard.npy", write)


def test_files_of_a_folder_can_be_read_by_others(tmp_path: Path) -> None:
    with files.write_whole_folder(tmp_path / "new") as folder:
        (folder / "secret").write_text("", "utf-8")
        (folder / "secret").chmod(0o600)
    plain = tmp_path / "plain"
    plain.write_text("", "utf-8")
    assert (tmp_path / "new" / "secret").stat().st_mode == plain.stat().st_mode
