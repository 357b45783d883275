import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds.errors import CheckpointError
from lert_ds.train import checkpoint_folder as layout
from lert_ds.train.checkpoint import Checkpoints
from lert_ds.train.checkpoint_search import CheckpointSearch, Found
from lert_ds.train.fragments import Fragments
from lert_ds.train.peers import Peers

Ranks = Callable[..., list[Any]]
WEIGHTS = layout.rank_file(0)


def save(folder: Path, peers: Any, engine: Any, *steps: int) -> None:
    checkpoints = Checkpoints(folder, peers, keep=9)
    for step in steps:
        checkpoints.start(engine, step, {"samples": 8 * step})
        checkpoints.finish()


@pytest.fixture
def saved(tmp_path: Path, stand_in: Any) -> Path:
    """Checkpoints of one process at steps 10, 20 and 30."""
    save(tmp_path, Peers(1), stand_in(), 10, 20, 30)
    return tmp_path


def search(folder: Path, wanted: str | None = None) -> Found | None:
    return CheckpointSearch(folder, Peers(1), [0]).newest(wanted)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def test_a_new_folder_has_none(tmp_path: Path) -> None:
    assert search(tmp_path) is None
    assert search(tmp_path / "not made yet") is None


def test_the_newest_is_found_and_the_others_stay(saved: Path) -> None:
    assert search(saved) == Found("step-30", ())
    assert names(saved) == {"step-10", "step-20", "step-30", "latest"}


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda f: flip(f / WEIGHTS), f"{WEIGHTS} is damaged: its SHA-256"),
    "truncated": (lambda f: cut(f / WEIGHTS), rf"{WEIGHTS} has \d+ bytes, not \d+"),
    "missing": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "state changed": (lambda f: flip(f / layout.STATE), r"state\.json is damaged"),
    "state missing": (lambda f: (f / layout.STATE).unlink(), r"state\.json is missing"),
    "manifest cut": (lambda f: cut(f / layout.MANIFEST), r"manifest\.json: missing or damaged"),
    "manifest gone": (lambda f: (f / layout.MANIFEST).unlink(), r"manifest\.json: missing or"),
    "emptied": (lambda f: [path.unlink() for path in f.iterdir()], r"manifest\.json: missing"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_passed_over_with_the_reason_and_set_aside(
    saved: Path, damage: Callable[[Path], object], told: str
) -> None:
    damage(saved / "step-30")
    left = names(saved / "step-30")
    found = search(saved)
    assert found is not None
    assert found.tag == "step-20"
    assert len(found.skipped) == 1
    assert re.search(f"^step-30: .*{told}", found.skipped[0])
    assert names(saved) == {"step-10", "step-20", "skipped-step-30", "latest"}
    assert names(saved / "skipped-step-30") == left, "nobody loses what is in it"
    assert search(saved) == Found("step-20", ()), "the next start has nothing to say"


def test_a_damaged_one_that_comes_again_takes_the_place_of_the_first(
    saved: Path, stand_in: Any
) -> None:
    for _ in range(2):
        flip(saved / "step-30" / WEIGHTS)
        found = search(saved)
        assert found is not None
        assert found.tag == "step-20"
        save(saved, Peers(1), stand_in(), 30)
    assert search(saved) == Found("step-30", ())


def test_where_none_is_whole_it_is_an_error_and_not_a_new_start(saved: Path) -> None:
    flip(saved / "step-30" / WEIGHTS)
    (saved / "step-20" / layout.MANIFEST).unlink()
    cut(saved / "step-10" / WEIGHTS)
    before = names(saved)
    with pytest.raises(CheckpointError) as error:
        search(saved)
    message = str(error.value)
    assert message.startswith(f"{saved}: no checkpoint to go on from: step-30: ")
    assert "step-20: " in message
    assert "step-10: " in message
    assert "overwrite=true" in message
    assert names(saved) == before


def test_a_wanted_one_is_found_and_newer_ones_are_set_aside(saved: Path) -> None:
    assert search(saved, "step-10") == Found("step-10", ())
    assert names(saved) == {"step-10", "skipped-step-20", "skipped-step-30", "latest"}


def test_a_wanted_one_that_is_not_whole_is_refused(saved: Path) -> None:
    flip(saved / "step-20" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"no checkpoint to go on from: step-20: .*SHA-256"):
        search(saved, "step-20")
    with pytest.raises(CheckpointError, match="no checkpoint to go on from: step-25: it is not th"):
        search(saved, "step-25")
    assert names(saved) == {"step-10", "step-20", "step-30", "latest"}


def test_what_a_dead_process_was_writing_is_no_checkpoint(saved: Path) -> None:
    shutil.copytree(saved / "step-30", layout.part_of(saved, "step-40"))
    assert search(saved) == Found("step-30", ())
    assert not layout.part_of(saved, "step-40").exists()


def test_a_manifest_cannot_lead_out_of_the_folder(saved: Path, tmp_path: Path) -> None:
    path = saved / "step-30" / layout.MANIFEST
    tree = json.loads(path.read_text())
    tree["files"]["../step-20/state.json"] = tree["files"].pop(layout.STATE)
    path.write_text(json.dumps(tree))
    found = search(saved)
    assert found is not None
    assert found.tag == "step-20"
    assert "damaged" in found.skipped[0]


# --- several processes


def newest(folder: Path, peers: Any) -> Found | None:
    return Checkpoints(folder, peers, keep=9).newest()


def weights(folder: Path, tag: str) -> torch.Tensor:
    manifest = layout.read_manifest(folder, tag)
    paths = [folder / tag / name for name in manifest["files"] if name != layout.STATE]
    return Fragments(paths).whole("linear.weight")


@pytest.fixture
def hosts(as_ranks: Ranks, tmp_path: Path, stand_in: Any) -> list[Path]:
    """Two hosts without a shared disk, two processes on each, checkpoints at steps 10 and 20."""
    folders = [tmp_path / f"host-{rank // 2}" for rank in range(4)]
    as_ranks(folders, lambda folder, peers: save(folder, peers, stand_in(), 10, 20))
    return folders


def test_each_host_has_the_files_of_its_processes_and_the_same_manifest(hosts: list[Path]) -> None:
    first, second = hosts[0] / "step-20", hosts[2] / "step-20"
    assert names(first) == {"manifest.json", "state.json", *map(layout.rank_file, (0, 1))}
    assert names(second) == {"manifest.json", "state.json", *map(layout.rank_file, (2, 3))}
    assert (first / layout.MANIFEST).read_bytes() == (second / layout.MANIFEST).read_bytes()


def test_hosts_get_the_files_that_they_lack(
    as_ranks: Ranks, hosts: list[Path], stand_in: Any
) -> None:
    assert as_ranks(hosts, newest) == [Found("step-20", ())] * 4
    for host in (hosts[0], hosts[2]):
        assert len(names(host / "step-20")) == 6
        assert torch.equal(weights(host, "step-20"), stand_in().tensors["weights"].reshape(3, 4))
        assert len(names(host / "step-10")) == 4, "only what is needed is copied"


@pytest.mark.parametrize("place", [0, 3])
def test_a_new_host_gets_all(
    as_ranks: Ranks, hosts: list[Path], tmp_path: Path, place: int
) -> None:
    new = tmp_path / "new"
    places = [hosts[0], hosts[2]]
    places.insert(place, new)
    assert as_ranks(places, newest) == [Found("step-20", ())] * 3
    assert names(new) == {"step-20", "latest"}
    assert torch.equal(weights(new, "step-20"), weights(hosts[0], "step-20"))
    for name in layout.read_manifest(new, "step-20")["files"]:
        entry = layout.read_manifest(new, "step-20")["files"][name]
        assert layout.problem(new / "step-20" / name, entry) is None


def test_one_process_reads_what_two_hosts_wrote_once_all_is_there(
    as_ranks: Ranks, hosts: list[Path]
) -> None:
    with pytest.raises(CheckpointError, match=r"rank-00002\.safetensors is missing"):
        as_ranks([hosts[0]], newest)
    as_ranks(hosts, newest)
    assert as_ranks([hosts[0]], newest) == [Found("step-20", ())]


def test_a_damaged_file_is_replaced_by_the_sound_one_of_another_host(
    as_ranks: Ranks, hosts: list[Path]
) -> None:
    as_ranks(hosts, newest)
    flip(hosts[0] / "step-20" / layout.rank_file(1))
    cut(hosts[2] / "step-20" / layout.STATE)
    assert as_ranks(hosts, newest) == [Found("step-20", ())] * 4
    assert torch.equal(weights(hosts[0], "step-20"), weights(hosts[2], "step-20"))
    assert layout.read_state(hosts[2], "step-20")["step"] == 20


def test_a_file_that_no_host_has_whole_passes_the_checkpoint_over(
    as_ranks: Ranks, hosts: list[Path]
) -> None:
    flip(hosts[2] / "step-20" / layout.rank_file(3))
    found = as_ranks(hosts, newest)
    assert {one.tag for one in found} == {"step-10"}
    assert {one.skipped for one in found} == {found[0].skipped}
    assert "rank-00003.safetensors is damaged" in found[0].skipped[0]
    for host in (hosts[0], hosts[2]):
        assert names(host) == {"step-10", "skipped-step-20", "latest"}


def test_manifests_that_differ_pass_the_checkpoint_over(
    as_ranks: Ranks, hosts: list[Path], stand_in: Any
) -> None:
    # As if two hosts had gone on apart: the files of the one do not fit those of the other.
    shutil.rmtree(hosts[2] / "step-20")
    as_ranks(hosts[2:], lambda folder, peers: save(folder, peers, stand_in(1), 20))
    found = as_ranks(hosts, newest)
    assert {one.tag for one in found} == {"step-10"}
    assert found[0].skipped == ("step-20: its manifests differ between the hosts",)


def test_a_host_that_died_before_it_published_leaves_the_older_one(
    as_ranks: Ranks, hosts: list[Path]
) -> None:
    (hosts[2] / "step-20").rename(layout.part_of(hosts[2], "step-20"))
    found = as_ranks(hosts, newest)
    assert {one.tag for one in found} == {"step-10"}
    assert "rank-00002.safetensors is missing" in found[0].skipped[0]
    assert names(hosts[2]) == {"step-10", "latest"}


def test_processes_that_share_a_folder_share_the_hashing(
    as_ranks: Ranks, tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "shared"] * 4
    as_ranks(folders, lambda folder, peers: save(folder, peers, stand_in(), 5))
    hashed: list[str] = []
    sha256_of = layout.sha256_of

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(layout, "sha256_of", noted)
    assert as_ranks(folders, newest) == [Found("step-5", ())] * 4
    assert sorted(hashed) == [*(layout.rank_file(rank) for rank in range(4)), layout.STATE]
