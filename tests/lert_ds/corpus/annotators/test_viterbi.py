import itertools
import math
import random

import jieba.posseg
import pytest
from jieba.posseg.viterbi import viterbi

from lert_ds.corpus.annotators.viterbi import State, TagModel


@pytest.fixture(scope="module")
def model() -> TagModel:
    tables = jieba.posseg
    return TagModel(tables.char_state_tab_P, tables.start_P, tables.trans_P, tables.emit_P)


def test_paths_are_jiebas_own(model: TagModel) -> None:
    tables = jieba.posseg
    generator = random.Random(0)
    common = [*"刘德华张伟王芳李娜南昌徐州赵钱孙里程碑咖啡因特网红楼梦一二三大小的了和是"]
    known = sorted(tables.char_state_tab_P)
    for number in range(300):
        length = 1 + number % 9
        text = "".join(generator.choices(common if number % 3 else known, k=length))
        _, expected = viterbi(
            text, tables.char_state_tab_P, tables.start_P, tables.trans_P, tables.emit_P
        )
        assert model.best_path(text) == expected, text


def test_a_path_is_the_best_of_all() -> None:
    states: list[State] = [("B", "n"), ("E", "n"), ("S", "v")]
    generator = random.Random(1)
    start = {("B", "n"): -0.5, ("E", "n"): -math.inf, ("S", "v"): -1.0}
    transitions = {
        ("B", "n"): {("E", "n"): 0.0},
        ("E", "n"): {("B", "n"): -0.7, ("S", "v"): -0.9},
        ("S", "v"): {("B", "n"): -0.4, ("S", "v"): -1.2},
    }
    emissions = {state: {c: -generator.random() for c in "abcd"} for state in states}
    small = TagModel(dict.fromkeys("abcd", tuple(states)), start, transitions, emissions)
    for text in map("".join, itertools.product("abcd", repeat=4)):
        best = max(
            itertools.product(states, repeat=4),
            key=lambda path, text=text: (
                start[path[0]]
                + sum(emissions[s][c] for s, c in zip(path, text, strict=True))
                + sum(transitions[a].get(b, -math.inf) for a, b in itertools.pairwise(path))
            ),
        )
        assert small.best_path(text) == list(best)


def test_a_dead_end_does_not_stop_it() -> None:
    only = {"a": (("E", "n"),), "b": (("S", "v"),)}
    dead = TagModel(
        only,
        {("E", "n"): -1.0, ("S", "v"): -1.0},
        {("E", "n"): {}, ("S", "v"): {("S", "v"): -1.0}},
        {("E", "n"): {"a": -1.0}, ("S", "v"): {"b": -1.0}},
    )
    assert dead.best_path("abb") == [("E", "n"), ("S", "v"), ("S", "v")]
    assert dead.knows("a")
    assert not dead.knows("c")
