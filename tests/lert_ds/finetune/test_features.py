import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.finetune.features import in_chunks, windows, with_special


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int]:
    room = draw(st.integers(1, 60))
    return draw(st.integers(0, 400)), room, draw(st.integers(0, room - 1))


def fewest(length: int, room: int, overlap: int) -> int:
    """Count windows laid as far apart as may be, until the last place is covered."""
    count, covered = 1, room
    while covered < length:
        count, covered = count + 1, covered + room - overlap
    return count


@settings(deadline=None)
@given(cuts())
def test_windows_cover_overlap_and_are_as_few_as_can_be(cut: tuple[int, int, int]) -> None:
    length, room, overlap = cut
    found = windows(length, room, overlap)
    assert found[0].start == 0
    assert found[-1].end == length
    assert all(window.end - window.start <= room for window in found)
    assert len({window.end - window.start for window in found}) == 1
    for before, after in itertools.pairwise(found):
        assert before.start < after.start
        assert before.end - after.start >= overlap
    assert len(found) == fewest(length, room, overlap)


@settings(deadline=None)
@given(cuts())
def test_each_place_has_one_window_that_answers_for_it_where_it_stands_deepest(
    cut: tuple[int, int, int],
) -> None:
    found = windows(*cut)
    answered = [n for w in found for n in range(w.answers_from, w.answers_to)]
    assert answered == list(range(cut[0]))
    for window in found:
        assert window.start <= window.answers_from <= window.answers_to <= window.end
        for place in range(window.answers_from, window.answers_to):

            def depth(other: Any, place: int = place) -> float:
                is_first, is_last = other.start == 0, other.end == cut[0]
                left = math.inf if is_first else place - other.start
                right = math.inf if is_last else other.end - 1 - place
                return min(left, right)

            others = [w for w in found if w.start <= place < w.end]
            # A tie, and half a place of rounding, may go either way.
            assert depth(window) >= max(map(depth, others)) - 1


def test_windows_of_a_worked_example() -> None:
    assert [tuple(window) for window in windows(10, 6, 2)] == [(0, 6, 0, 5), (4, 10, 5, 10)]
    assert [tuple(window) for window in windows(6, 6, 2)] == [(0, 6, 0, 6)]
    assert [tuple(window) for window in windows(0, 6, 2)] == [(0, 0, 0, 0)]


@pytest.mark.parametrize("overlap", [-1, 6])
def test_an_overlap_that_cannot_be_is_our_mistake(overlap: int) -> None:
    with pytest.raises(AssertionError):
        windows(10, 6, overlap)


def test_special_tokens_frame_the_parts(tokenizer: Any) -> None:
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    row, second = with_special(tokenizer, [7, 8], None)
    assert (row.tolist(), second) == ([cls, 7, 8, sep], 4)
    row, second = with_special(tokenizer, [7, 8], [9])
    assert (row.tolist(), second) == ([cls, 7, 8, sep, 9, sep], 4)
    row, second = with_special(tokenizer, [], [])
    assert (row.tolist(), second) == ([cls, sep, sep], 2)


@settings(deadline=None)
@given(st.lists(st.text(max_size=3), max_size=20), st.integers(1, 7))
def test_chunks_change_nothing_but_how_much_is_asked_at_once(texts: list[str], size: int) -> None:
    asked: list[int] = []

    def tokenize(some: Any) -> list[str]:
        asked.append(len(some))
        return [text.upper() for text in some]

    assert in_chunks(tokenize, texts, size) == [text.upper() for text in texts]
    assert all(count <= size for count in asked)
