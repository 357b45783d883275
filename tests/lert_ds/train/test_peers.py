import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lert_ds.train.peers import Peers

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three processes told each other: NAME-RANK.json, the exit codes in results.json."""
    folder = tmp_path_factory.mktemp("peers")
    script = ROOT / "tests/launch/peers_scenarios.py"
    subprocess.run([sys.executable, str(script), str(folder)], cwd=ROOT, check=True, timeout=120)
    return folder


def told(folder: Path, name: str) -> list[Any]:
    results = json.loads((folder / "results.json").read_text())
    for rank in range(3):
        said = (folder / f"{name}-{rank}.txt").read_text()
        assert results[f"{name}-{rank}"]["code"] == 0, said
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(3)]


def test_all_get_the_values_of_all_in_the_order_of_ranks(three: Path) -> None:
    first, *others = told(three, "gather")
    assert first == [
        [[0, 0], [1, 1000], [2, 2000]],
        [[0, 0.1], [1, 0.1], [2, 0.1]],
        [None, None, None],
    ]
    assert others == [first, first]


def test_an_exchange_is_one_call_late_and_equal_on_all(three: Path) -> None:
    first, *others = told(three, "exchange")
    # The largest of each flag over the ranks, of the call before.
    assert first == [[0, 0], [2, 0], [12, 0], [22, 7], [32, 0], [0, 0]]
    assert others == [first, first]


def test_the_lowest_that_sees_a_folder_leads(three: Path) -> None:
    found = told(three, "leader")
    leaders = [one[0] for one in found]
    assert leaders == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 2, 2, 0]]
    assert [one[1] for one in found] == [[], [], []], "nothing stays in the folders"


def test_a_file_is_copied_to_those_that_receive_it(three: Path) -> None:
    assert told(three, "copy_file") == [[], ["empty", "file"], ["empty", "file"]]
    for name in ("file", "empty"):
        sent = (three / "copies-1" / name).read_bytes()
        assert (three / "copies-2" / name).read_bytes() == sent
    assert len((three / "copies-2/file").read_bytes()) == 1000


def test_what_one_refuses_all_refuse(three: Path) -> None:
    for rank, (nothing, one, two) in enumerate(told(three, "agree")):
        assert nothing == ""
        assert "told by 1" in one
        assert f"told by {rank if rank else 1}" in two


def test_what_the_main_process_finds_holds_for_all(three: Path) -> None:
    for found, said, nothing in told(three, "of_main"):
        assert found == {"seen": 0}
        assert "told by 0" in said
        assert nothing is None


def test_one_alone_talks_to_nobody(tmp_path: Path) -> None:
    peers = Peers(1)
    assert peers.alone
    assert peers.gather({"step": 3}) == [{"step": 3}]
    assert peers.of_main(lambda: 7) == 7
    assert peers.exchange(15, 2) == (15, 2)
    assert peers.leader(tmp_path / "new/checkpoints") == 0
    assert (tmp_path / "new/checkpoints").is_dir()
    peers.settle()
