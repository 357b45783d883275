import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lert_ds.errors import CheckpointError
from lert_ds.train import checkpoint_folder as layout

CONTENT = b"weights and moments"


def save(folder: Path, step: int, content: bytes = CONTENT) -> None:
    """Do what the processes of a training do, all in one."""
    tag = layout.tag_of(step)
    part = layout.start_part(folder, tag)
    files = {layout.STATE: layout.write_state(part, {"step": step})}
    name = layout.rank_file(0)
    layout.write_whole(part / name, lambda file: file.write(content))
    files[name] = layout.Written(len(content), layout.sha256_of(part / name))
    layout.publish(folder, tag, layout.make_manifest(files, {"step": step, "processes": 1}))


def whole(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that are whole by their manifest, newest first."""
    found = []
    for tag in layout.tags(folder):
        manifest = layout.read_manifest(folder, tag)
        entries = manifest["files"].items()
        if all(
            (folder / tag / name).is_file() and layout.problem(folder / tag / name, entry) is None
            for name, entry in entries
        ):
            found.append(layout.step_of(tag))
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_published_is_whole_under_its_name(tmp_path: Path) -> None:
    save(tmp_path, 7)
    save(tmp_path, 20)
    save(tmp_path, 100)
    assert names(tmp_path) == {"step-7", "step-20", "step-100", "latest"}
    assert names(tmp_path / "step-7") == {"manifest.json", "state.json", "rank-00000.safetensors"}
    assert (tmp_path / "latest").read_text() == "step-100"
    assert layout.tags(tmp_path) == ["step-100", "step-20", "step-7"]  # by number, not by letter
    assert whole(tmp_path) == [100, 20, 7]
    manifest = layout.read_manifest(tmp_path, "step-7")
    assert (manifest["step"], manifest["processes"]) == (7, 1)
    assert layout.present(tmp_path, "step-7", manifest) == ["rank-00000.safetensors", "state.json"]
    assert layout.read_state(tmp_path, "step-7") == {"step": 7}


def test_a_folder_that_is_not_there_has_no_checkpoint(tmp_path: Path) -> None:
    assert layout.tags(tmp_path / "checkpoints") == []


def test_only_folders_named_by_a_step_are_checkpoints(tmp_path: Path) -> None:
    for name in ("step-", "step-x", "step-5.old", "skipped-step-9", "model", ".step-8.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-6").write_text("a file")
    (tmp_path / "step-12").mkdir()
    assert layout.tags(tmp_path) == ["step-12"]


def test_numbers_of_the_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    state = {"sums": {"loss": [[0.1 + 0.2, 1e-300], [float("inf"), 3.0]]}, "corpus": "f" * 64}
    part = layout.start_part(tmp_path, "step-1")
    written = layout.write_state(part, state)
    layout.publish(tmp_path, "step-1", layout.make_manifest({layout.STATE: written}, {}))
    assert layout.read_state(tmp_path, "step-1") == state


def test_a_checkpoint_that_is_there_is_replaced(tmp_path: Path) -> None:
    # A damaged one that was passed over, else the run would have gone on from it.
    save(tmp_path, 5, b"damaged")
    save(tmp_path, 5)
    assert (tmp_path / "step-5" / layout.rank_file(0)).read_bytes() == CONTENT
    assert names(tmp_path) == {"step-5", "latest"}


# --- what a manifest may say


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def act(content: bytes) -> bytes:
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return act


def named(name: object) -> Callable[[bytes], bytes]:
    return damaged(lambda tree: tree["files"].update({name: {"size_bytes": 1, "sha256": "0" * 64}}))


BAD_MANIFESTS: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "no text": lambda content: b"\xff\xfe" + content,
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "no version": damaged(lambda tree: tree.pop("format_version")),
    "no files": damaged(lambda tree: tree.pop("files")),
    "files as a list": damaged(lambda tree: tree.update(files=["state.json"])),
    "no state": damaged(lambda tree: tree["files"].pop("state.json")),
    "no size": damaged(lambda tree: tree["files"]["state.json"].pop("size_bytes")),
    "a size that is text": damaged(lambda tree: tree["files"]["state.json"].update(size_bytes="1")),
    "no hash": damaged(lambda tree: tree["files"]["state.json"].update(sha256=None)),
    "a file without facts": damaged(lambda tree: tree["files"].update({"state.json": None})),
    "a name that leads out": named("../../outside"),
    "a name elsewhere": named("/etc/passwd"),
    "a name in a folder": named("more/weights"),
    "the folder above": named(".."),
    "no name": named(""),
}


@pytest.mark.parametrize("damage", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_bad_manifest_is_refused_by_name(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    save(tmp_path, 3)
    path = tmp_path / "step-3" / layout.MANIFEST
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as error:
        layout.read_manifest(tmp_path, "step-3")
    assert str(error.value).startswith(f"{path}: ")
    assert "damaged" in str(error.value)


def test_another_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    save(tmp_path, 3)
    path = tmp_path / "step-3" / layout.MANIFEST
    path.write_bytes(damaged(lambda tree: tree.update(format_version=9))(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"format 9, which this version \(format 2\) cannot"):
        layout.read_manifest(tmp_path, "step-3")


def test_a_missing_manifest_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "step-3").mkdir()
    with pytest.raises(CheckpointError, match=r"step-3/manifest\.json: missing or damaged"):
        layout.read_manifest(tmp_path, "step-3")


def test_what_is_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    save(tmp_path, 3)
    name = layout.rank_file(0)
    path, entry = (
        tmp_path / "step-3" / name,
        layout.read_manifest(tmp_path, "step-3")["files"][name],
    )
    assert layout.problem(path, entry) is None
    path.write_bytes(CONTENT[:-1] + b"!")
    assert layout.problem(path, entry) == (
        "rank-00000.safetensors is damaged: its SHA-256 is not the manifest's"
    )
    path.write_bytes(CONTENT[:-1])
    assert layout.problem(path, entry) == "rank-00000.safetensors has 18 bytes, not 19"


# --- what may go


def test_the_newest_and_every_mth_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50, 60, 70):
        save(tmp_path, step)
    layout.remove_old(tmp_path, keep=2, keep_every=30)
    assert layout.tags(tmp_path) == ["step-70", "step-60", "step-30"]
    layout.remove_old(tmp_path, keep=2, keep_every=0)
    assert names(tmp_path) == {"step-70", "step-60", "latest"}


def test_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    save(tmp_path, 4)
    part = layout.start_part(tmp_path, "step-8")
    (part / layout.rank_file(0)).write_bytes(b"half of")
    half = tmp_path / ".latest.0123abcd.99999999.part"  # of a kill while `latest` was replaced
    half.write_text("step-")
    layout.remove_parts(tmp_path)
    assert names(tmp_path) == {"step-4", "latest"}


def test_a_part_that_was_left_is_no_obstacle(tmp_path: Path) -> None:
    (layout.start_part(tmp_path, "step-8") / "rank-00007.safetensors").write_bytes(b"old")
    save(tmp_path, 8)
    assert "rank-00007.safetensors" not in names(tmp_path / "step-8")
    assert whole(tmp_path) == [8]


# --- a kill between any two operations


class _Counted:
    """Ends the process at once before the Nth operation on files, as a kill would."""

    def __init__(self, last: int) -> None:
        self._left = last
        self.calls = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not self._left:
                os._exit(9)
            self._left -= 1
            return function(*arguments, **options)

        return call

    def remove_tree(self, path: Path, ignore_errors: bool = False) -> None:
        """Remove a folder file by file: a kill may come after any of them."""
        if path.is_dir():
            for child in sorted(path.iterdir()):
                self.wrap(child.unlink)()
            self.wrap(path.rmdir)()


def killed_at_each_operation(folder: Path, act: Callable[[], None]) -> Iterator[int]:
    """Let `act` be killed before its 1st, 2nd, … operation in a fresh copy of `folder`.

    Yields the number of the operation, with `folder` as the kill left it, until none is left.
    """
    before = folder.with_name("before")
    shutil.copytree(folder, before)
    number = 0
    while True:
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        child = os.fork()
        if child == 0:
            counted = _Counted(number)
            shutil.rmtree = counted.remove_tree  # type: ignore[assignment]
            for name in ("rename", "replace", "unlink", "open", "mkdir"):
                setattr(Path, name, counted.wrap(getattr(Path, name)))
            os.fsync = counted.wrap(os.fsync)
            try:
                act()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        yield number
        if os.waitstatus_to_exitcode(status) == 0:
            return
        number += 1


def test_a_kill_while_publishing_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 10)
    found = []
    for _ in killed_at_each_operation(folder, lambda: save(folder, 20)):
        found.append(whole(folder)[0])
        assert whole(folder) in ([10], [20, 10]), "what has a name is whole"
        assert (folder / "latest").read_text() in ("step-10", "step-20")
        save(folder, 20)  # the next start does it again, whatever was left
        layout.remove_parts(folder)
        assert names(folder) == {"step-10", "step-20", "latest"}
    assert found == sorted(found)
    assert len(found) > 15, "the operations are counted"
    assert found.count(20) >= 3, "some kills come after the rename"


def test_a_kill_while_a_damaged_one_is_replaced_leaves_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 10)
    save(folder, 20, b"damaged")
    (folder / "step-20" / layout.rank_file(0)).write_bytes(b"other bytes")
    for _ in killed_at_each_operation(folder, lambda: save(folder, 20)):
        steps = []
        for tag in layout.tags(folder):
            try:
                layout.read_manifest(folder, tag)
            except CheckpointError:
                continue  # half removed: the search passes it over
            steps.append(layout.step_of(tag))
        assert 10 in steps
    assert whole(folder) == [20, 10]


def test_a_kill_while_old_ones_are_removed_leaves_no_half_under_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30, 40):
        save(folder, step)
    kept = []
    for _ in killed_at_each_operation(folder, lambda: layout.remove_old(folder, 2, 0)):
        steps = whole(folder)
        assert [layout.tag_of(step) for step in steps] == layout.tags(folder)
        assert steps[:2] == [40, 30]
        kept.append(len(steps))
        layout.remove_old(folder, 2, 0)
        assert names(folder) == {"step-30", "step-40", "latest"}
    assert kept[0] == 4
    assert kept[-1] == 2
    assert len(kept) > 8


def test_a_full_disk_while_publishing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    part = layout.start_part(tmp_path, "step-20")
    written = layout.write_state(part, {"step": 20})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        manifest = layout.make_manifest({layout.STATE: written}, {})
        with pytest.raises(OSError, match="No space left"):
            layout.publish(tmp_path, "step-20", manifest)
    layout.remove_parts(tmp_path)
    assert names(tmp_path) == {"step-10", "latest"}
    assert whole(tmp_path) == [10]
