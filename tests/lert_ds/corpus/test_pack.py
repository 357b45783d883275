"""Documents into rows: nothing lost, nothing torn, almost nothing padded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.corpus.align import Tokens
from lert_ds.corpus.pack import Packer
from lert_ds.data.shards import ARRAYS
from lert_ds.labels import IGNORE_INDEX, TASKS

PAD, CLS, SEP = 0, 2, 3
SPECIAL = {"pad": PAD, "unk": 1, "cls": CLS, "sep": SEP, "mask": 4}
VOCABULARY = 60_000


def document(words: list[int], first_id: int) -> Tokens:
    """Return words of the given sizes, ids counting up, the class of each its id modulo 5."""
    ids = np.arange(first_id, first_id + sum(words), dtype=np.uint16)
    starts = np.zeros(len(ids), dtype=bool)
    starts[np.cumsum([0, *words])[:-1]] = True
    return Tokens(ids, starts, {task: (ids % 5).astype(np.uint8) for task in TASKS})


def pack(folder: Path, documents: list[Tokens], length: int, shard_bytes: int = 1000) -> Any:
    packer = Packer(
        folder, "00000", length, SPECIAL, VOCABULARY, dict.fromkeys(TASKS, 5), shard_bytes
    )
    for tokens in documents:
        packer.start_document()
        packer.add(tokens)
    packer.finish()
    rows = {
        name: np.concatenate(
            [
                np.load(folder / "shards" / f"{record['name']}.{name}.npy")
                for record in packer.records
            ]
            or [np.empty((0, length))]
        )
        for name in ARRAYS
    }
    return packer, rows


def test_by_hand(tmp_path: Path) -> None:
    documents = [document([2, 1, 2, 1], 10), document([1, 1, 1], 20), document([3], 30)]
    packer, rows = pack(tmp_path, documents, 8)
    assert rows["input_ids"].tolist() == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 20, 21, 22, SEP, SEP, PAD, PAD],
        [CLS, 30, 31, 32, SEP, PAD, PAD, PAD],
    ] or rows["input_ids"].tolist() == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 20, 21, 22, SEP, PAD, PAD, PAD],
        [CLS, 30, 31, 32, SEP, PAD, PAD, PAD],
    ]
    assert rows["input_ids"].tolist()[1].count(SEP) == 1  # never two in a row
    assert rows["word_starts"].tolist()[0] == [0, 1, 0, 1, 1, 0, 1, 0]
    assert rows["pos"].tolist()[2] == [255, 0, 1, 2, 255, 255, 255, 255]
    assert packer.words == 4 + 3 + 1
    assert packer.token_counts[PAD] == 6


def test_documents_share_an_instance(tmp_path: Path) -> None:
    _, rows = pack(tmp_path, [document([1, 1], 10), document([1, 2], 20)], 8)
    assert rows["input_ids"].tolist() == [[CLS, 10, 11, SEP, 20, 21, 22, SEP]]


def test_a_word_longer_than_an_instance_is_cut_and_counted(tmp_path: Path) -> None:
    packer, rows = pack(tmp_path, [document([1, 15, 1], 10)], 8)
    assert rows["input_ids"].tolist() == [
        [CLS, 10, SEP, PAD, PAD, PAD, PAD, PAD],
        [CLS, 11, 12, 13, 14, 15, 16, SEP],
        [CLS, 17, 18, 19, 20, 21, 22, SEP],
        [CLS, 23, 24, 25, 26, SEP, PAD, PAD],
    ]
    assert rows["word_starts"][2, 1]  # what is left of it opens a word of its own
    assert packer.counts == {"word longer than an instance, cut": 2}


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 6), max_size=30), max_size=12),
    length=st.integers(9, 24),
    shard_bytes=st.sampled_from([1, 400, 100_000]),
)
def test_nothing_is_lost_and_words_are_whole(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    length: int,
    shard_bytes: int,
) -> None:
    first, made = 10, []
    for words in documents:
        made.append(document(words, first))
        first += sum(words)
    packer, rows = pack(tmp_path_factory.mktemp("p"), made, length, shard_bytes)
    ids, starts = rows["input_ids"], rows["word_starts"]
    text = ids >= 10
    assert ids[text].tolist() == list(range(10, first))
    expected = np.concatenate([np.empty(0, bool), *(tokens.word_starts for tokens in made)])
    assert starts[text].tolist() == expected.tolist()
    assert (rows["dep"][text] == ids[text] % 5).all()
    assert (rows["dep"][~text] == IGNORE_INDEX).all()
    assert not starts[~text].any()
    assert packer.words == int(expected.sum())
    document_ends = set((np.cumsum([0, *(len(tokens.ids) for tokens in made)]) + 9).tolist())
    for row, opens in zip(ids.tolist(), starts.tolist(), strict=True):
        end = len(row) - row[::-1].index(SEP) - 1
        assert row[0] == CLS
        assert row.count(CLS) == 1
        assert set(row[end + 1 :]) <= {PAD}
        assert PAD not in row[:end]
        assert opens[1], "an instance begins at a word border"
        separators = [place for place, token in enumerate(row[:end]) if token == SEP]
        assert all(row[place - 1] in document_ends for place in separators)
        assert all(row[place + 1] >= 10 for place in separators), "no empty document"
    # Only the end of the last row, and less than the next word and its [SEP] in others, is padded.
    assert ((ids[:-1] == PAD).sum(axis=1) <= 6).all()
