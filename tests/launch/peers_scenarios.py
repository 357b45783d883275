"""What processes tell each other: `python tests/launch/peers_scenarios.py FOLDER`."""

import json
import sys
import time
from pathlib import Path

from forked_ranks import Scenario, run

from lert_ds import distributed
from lert_ds.errors import CorpusError, UserError
from lert_ds.train import peers as module
from lert_ds.train.peers import Peers

FOLDER = Path(sys.argv[-1])
FILE_BYTES = 1000


def tell(name: str, value: object) -> None:
    path = FOLDER / f"{name}-{distributed.rank()}.json"
    path.write_text(json.dumps(value))


def gather() -> None:
    peers, rank = Peers(60), distributed.rank()
    first = peers.gather({"rank": rank, "text": "汉" * (1000 * rank), "nothing": None})
    second = peers.gather([rank, 0.1])
    third = peers.gather(None)
    tell("gather", [[(one["rank"], len(one["text"])) for one in first], second, third])


def exchange() -> None:
    """Five exchanges: the second flag only of rank 1, in the third call; others are late."""
    peers, rank = Peers(60), distributed.rank()
    received = []
    for call in range(5):
        if call == 3 and rank == 0:
            time.sleep(0.3)  # a slow one changes nothing
        received.append(peers.exchange(10 * call + rank, 7 if (rank, call) == (1, 2) else 0))
    peers.settle()
    peers.settle()
    received.append(peers.exchange(99, 0))  # as the first: nothing is left from before
    peers.settle()
    tell("exchange", received)


def leader() -> None:
    peers, rank = Peers(60), distributed.rank()
    shared = FOLDER / "shared"
    # Two of a host and one of another.
    hosts = FOLDER / ("host-0" if rank < 2 else "host-2")
    own = FOLDER / f"own-{rank}"
    found = [peers.leader(folder) for folder in (shared, hosts, own, shared)]
    peers.gather(None)
    left = [path.name for folder in (shared, hosts, own) for path in folder.iterdir()]
    tell("leader", [found, left])


def copy_file() -> None:
    peers, rank = Peers(60), distributed.rank()
    module._CHUNK_BYTES = 300  # four pieces
    folder = FOLDER / f"copies-{rank}"
    folder.mkdir()
    if rank == 1:
        (folder / "file").write_bytes(bytes(n % 251 for n in range(FILE_BYTES)))
        (folder / "empty").write_bytes(b"")
    for name in ("file", "empty"):
        peers.copy_file(folder / name, 1, rank == 2)
    tell("copy_file", sorted(path.name for path in folder.iterdir()))


def agree() -> None:
    peers, said = Peers(60), []
    for wrong in ((), (1,), (1, 2)):
        mine = CorpusError(f"told by {distributed.rank()}") if distributed.rank() in wrong else None
        try:
            peers.agree(mine)
            said.append("")
        except UserError as error:
            said.append(str(error))
    tell("agree", said)


def of_main() -> None:
    """The main process's disk decides, for those too that see another or none."""
    peers, rank = Peers(60), distributed.rank()
    found = peers.of_main(lambda: {"seen": rank})

    def refuse() -> None:
        raise CorpusError(f"told by {rank}")

    try:
        peers.of_main(refuse)
        said = ""
    except UserError as error:
        said = str(error)
    tell("of_main", [found, said, peers.of_main(lambda: None)])


if __name__ == "__main__":
    acts = (gather, exchange, leader, copy_file, agree, of_main)
    run(FOLDER, [Scenario(act.__name__, 3, act) for act in acts])
