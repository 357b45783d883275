"""Fixtures that several test modules share."""

import os
from collections.abc import Iterator
from pathlib import Path

# One thread a process: tests start several, and threads that wait for a core cost more than they
# give. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import pytest

from lert_ds.data.shards import HELD_OUT, Manifest, write_manifest, write_shard
from lert_ds.files import sha256_of
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS, TASKS

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def write_tiny_corpus(folder: Path, *, instances: int, seed: int, length: int = 32) -> Path:
    """Write a corpus of two texts, repeated: what stands at a place tells which, and so the rest.

    Words are of one or two tokens; tags follow from the token. A model of any size learns it soon.
    """
    generator = np.random.default_rng(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
        chr(0x4E00 + i) for i in range(40)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    first = generator.integers(0, 2, size=(instances, 1))
    ids = 5 + (first + 7 * np.arange(length)) % 40
    ids[:, 0], ids[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    starts = np.ones((instances, length), dtype=np.bool_)
    starts[:, 2::3] = False
    starts[:, [0, -1]] = False
    arrays = {"input_ids": ids, "word_starts": starts}
    for task in TASKS:
        classes = (ids % len(LTP_TAGS[task])).astype(np.uint8)
        classes[:, [0, -1]] = IGNORE_INDEX
        arrays[task] = classes
    half = instances // 2
    shards = [
        write_shard(folder, f"0000{k}-000", {name: array[part] for name, array in arrays.items()})
        for k, part in enumerate((slice(0, half), slice(half, None)))
    ]
    write_manifest(
        folder,
        Manifest(
            length=length,
            vocabulary_size=len(vocabulary),
            tokenizer_sha256=sha256_of(folder / "vocab.txt"),
            special_ids=SPECIAL,
            tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
            instances=instances,
            shards=shards,
            counts={},
            statistics={},
            config={},
            versions={},
        ),
    )
    return folder


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A process group of one; DeepSpeed cannot join a second one after it has left the first."""
    from lert_ds.train.engine import join_processes, leave_processes

    join_processes()
    yield
    leave_processes()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder of 64 instances of 32 tokens, with 13 more held out."""
    folder = write_tiny_corpus(tmp_path_factory.mktemp("corpus") / "tiny", instances=64, seed=0)
    write_tiny_corpus(folder / HELD_OUT, instances=13, seed=1)
    return folder
