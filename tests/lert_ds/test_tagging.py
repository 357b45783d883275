"""Copies of sentences with one word masked: which, how long, and what is made of the answers."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds import tagging
from lert_ds.errors import UserError
from lert_ds.predictions import SpecialTokens
from lert_ds.tagging import Encoded, MaskedCopies, Scores, SpecialIds, Tagger, Words

MASK, CLS, SEP, FIRST = 1, 2, 3, 10
TAGS = {"pos": ["n", "v", "a"]}


class Model:
    """Says how many pieces are seen beside a masked one, and counts its batches."""

    def __init__(self) -> None:
        self.batches: list[MaskedCopies] = []

    def score(self, copies: MaskedCopies) -> Scores:
        self.batches.append(copies)
        longest = max(map(len, copies.ids))
        table = np.zeros((len(copies.ids), longest), np.int64)
        for row, ids in enumerate(copies.ids):
            assert (ids[0], ids[-1]) == (CLS, SEP)
            table[row, : len(ids)] = ids
        assert (table.reshape(-1)[copies.places] == MASK).all()
        seen = (table >= FIRST).sum(1)[copies.places // longest]
        shares = np.stack([seen, 2 * seen, 3 * seen + copies.truth], 1).astype(np.float32)
        return Scores(copies.truth / 1000, {"pos": shares / shares.sum(1, keepdims=True)})


def encode(text: str) -> Encoded:
    """A piece a character, but a capital letter, which is two; white space is none."""
    ids, spans = [], []
    for place, character in enumerate(text):
        for _ in range(0 if character in " \x00" else 2 if character.isupper() else 1):
            ids.append(FIRST + ord(character) % 100)
            spans.append((place, place + 1))
    return Encoded(ids, spans)


def make(model: Model, positions: int = 12, tokens_per_batch: int = 8192) -> Tagger:
    return Tagger(
        encode=encode,
        score=model.score,
        name_of=str,
        special=SpecialTokens(),
        special_ids=SpecialIds(MASK, CLS, SEP),
        positions=positions,
        tag_sets=TAGS,
        tokens_per_batch=tokens_per_batch,
    )


texts = st.lists(st.text("abcXYZ", min_size=1, max_size=9), max_size=9)


@given(
    sentences=st.lists(texts, max_size=5), positions=st.integers(3, 20), budget=st.integers(1, 200)
)
def test_every_piece_of_every_word_is_asked_about_once(
    sentences: Sequence[Sequence[str]], positions: int, budget: int
) -> None:
    model = Model()
    given_words = [Words(" ".join(words), words) for words in sentences]
    tagged = make(model, positions, budget).tag(given_words)
    for sentence, (text, words) in zip(tagged, given_words, strict=True):
        assert sentence.text == text
        assert [word.word for word in sentence.words] == words
        for word in sentence.words:
            own = encode(word.word).ids
            assert [piece.name for piece in word.pieces] == [str(piece) for piece in own]
            assert [p.probability for p in word.pieces] == pytest.approx([p / 1000 for p in own])
            assert len(word.tags["pos"]) == 1
    for batch in model.batches:
        tokens = len(batch.ids) * max(map(len, batch.ids))
        assert tokens <= budget or len(batch.ids) == 1
        assert max(map(len, batch.ids)) <= positions
        assert len(batch.places) <= max(1, budget // 4) or len(batch.ids) == 1


@given(
    words=st.lists(st.text("abX", min_size=1, max_size=4), min_size=1, max_size=12),
    positions=st.integers(8, 20),
)
def test_a_window_is_as_wide_as_can_be_and_the_word_in_its_middle(
    words: Sequence[str], positions: int
) -> None:
    pieces = [len(encode(word).ids) for word in words]
    ends = np.cumsum(pieces).tolist()
    spans = [(end - count, end) for end, count in zip(ends, pieces, strict=True)]
    room, total = positions - 2, ends[-1]
    if max(pieces) > room:
        return
    for copy, (first, after) in zip(
        tagging._copies(0, total, iter(spans), room), spans, strict=True
    ):
        assert copy.masked == copy.scored == (first, after)
        assert copy.end - copy.start == min(room, total)
        left, right = first - copy.start, copy.end - after
        if copy.start > 0 and copy.end < total:
            assert abs(left - right) <= 1
        else:  # at an end of the sentence, which is seen
            assert copy.start == 0 or copy.end == total
            assert copy.start == 0 or left >= (room - after + first) // 2
            assert copy.end == total or right >= (room - after + first) // 2


def test_a_word_longer_than_the_model_is_asked_about_in_parts() -> None:
    model = Model()
    (tagged,) = make(model, positions=6).tag([Words("abbbbbbbbbc", ["a", "b" * 9, "c"])])
    assert [len(word.pieces) for word in tagged.words] == [1, 9, 1]
    windows = [ids[1:-1] for batch in model.batches for ids in batch.ids]
    assert sum(window == [MASK] * 4 for window in windows) == 2
    assert sum(len(batch.places) for batch in model.batches) == 11


def test_the_probability_of_a_tag_is_its_mean_over_the_pieces() -> None:
    model = Model()
    (tagged,) = make(model).tag([Words("abX", ["a", "bX"])], top_k=9)
    (batch,) = model.batches
    shares = model.score(batch).tags["pos"]
    word = tagged.words[1]  # b, X, X: the last rows, whose copy is of the same length
    wanted = sorted(zip(shares[1:].mean(0), TAGS["pos"], strict=True), reverse=True)
    assert [tag.name for tag in word.tags["pos"]] == [name for _, name in wanted]
    assert [tag.probability for tag in word.tags["pos"]] == pytest.approx([p for p, _ in wanted])
    assert sum(tag.probability for tag in word.tags["pos"]) == pytest.approx(1)


def test_a_piece_that_reaches_into_two_words_counts_for_both() -> None:
    whole = Encoded([11, 12], [(0, 3), (3, 4)])
    tagger = dataclasses.replace(make(Model()), encode=lambda _: whole)
    (tagged,) = tagger.tag([Words("abcd", ["a", "bc", "d"])])
    assert [[p.name for p in word.pieces] for word in tagged.words] == [["11"], ["11"], ["12"]]


def test_a_word_without_a_piece_has_no_tags() -> None:
    (tagged,) = make(Model()).tag([Words("a\x00b", ["a", "\x00", "b"])])
    assert [len(word.tags) for word in tagged.words] == [1, 0, 1]
    assert make(Model()).tag([Words("", [])])[0].words == []
    assert make(Model()).tag([]) == []


def test_what_is_refused() -> None:
    tagger = make(Model())
    with pytest.raises(UserError, match=r"'a\[MASK\]': there is a \[MASK\] in it.*--tag out"):
        tagger.tag([Words("a[MASK]", ["a[MASK]"])])
    with pytest.raises(UserError, match="'ab': its words are not those of the text"):
        tagger.tag([Words("ab", ["b", "a"])])
    with pytest.raises(UserError, match="--top-k 0"):
        tagger.tag([Words("ab", ["ab"])], top_k=0)
