"""Annotated sentences of a task into shards: documents whole, each on its side."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from lert_ds.corpus import assemble as module
from lert_ds.corpus.assemble import SIDES, TRAIN, assemble
from lert_ds.corpus.read import number_of, share_of
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.work import Work
from lert_ds.data.shards import HELD_OUT

WORDS = [["我", "爱", "北京"], ["今", "天", "好"], ["他", "来", "了"], ["一", "二", "三"]]


@pytest.fixture
def work(make_work: Callable[..., Work], tmp_path: Path) -> Work:
    """Return a work folder with annotations: 30 documents of one to three sentences."""
    (tmp_path / "a.txt").write_text("我", "utf-8")
    work = make_work(input=str(tmp_path / "a.txt"), held_out=0.3)
    lines = []
    for number in range(30):
        doc = number_of(str(number))
        for place in range(number % 3 + 1):
            words = WORDS[(number + place) % 4]
            sentence = AnnotatedSentence("".join(words), words, ["n"] * 3, None, None, doc)
            lines.append(sentence.to_json() + b"\n")
    work.annotated(0).parent.mkdir()
    work.annotated(0).write_bytes(zstandard.compress(b"".join(lines)))
    work.write("divide.json", {"threshold": 0.3})
    return work


@pytest.mark.parametrize("batch_characters", [1, 17, 50_000])
def test_sides_hold_their_documents_whatever_the_batches(
    work: Work, monkeypatch: pytest.MonkeyPatch, batch_characters: int
) -> None:
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", batch_characters)
    assemble(work, 0)
    record = work.read("packed/00000.json")
    held = [n for n in range(30) if share_of(number_of(str(n))) < 0.3]
    assert 0 < len(held) < 30
    for side, numbers in ((HELD_OUT, held), (TRAIN, sorted(set(range(30)) - set(held)))):
        totals = record[side]["totals"]
        assert totals["documents"] == len(numbers)
        assert totals["sentences"] == sum(n % 3 + 1 for n in numbers)
        assert totals["words"] == 3 * totals["sentences"]
        folder = work.corpus / HELD_OUT if side == HELD_OUT else work.corpus
        (shard,) = record[side]["shards"]
        ids = np.load(folder / "shards" / f"{shard['name']}.input_ids.npy")
        flat = ids[~np.isin(ids, [0, 2, 3])].tolist()
        pieces = (work.tokenizer / "vocab.txt").read_text("utf-8").split("\n")
        expected = "".join(
            "".join(WORDS[(n + place) % 4]) for n in numbers for place in range(n % 3 + 1)
        )
        assert "".join(pieces[token] for token in flat) == expected
    with np.load(work.root / "packed/00000.npz") as arrays:
        assert {name.split(".")[0] for name in arrays} == set(SIDES)
        assert arrays["train.pos"][0] + arrays["held_out.pos"][0] == sum(
            4 * (n % 3 + 1) if False else 0 for n in range(0)
        ) + sum(len("".join(WORDS[(n + p) % 4])) for n in range(30) for p in range(n % 3 + 1))
