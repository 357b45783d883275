"""Statistics of a corpus, by numbers that can be worked out."""

import math

import numpy as np
import pytest

from lert_ds.corpus.corpus_statistics import NO_TAG, entropy, render, summarise
from lert_ds.labels import IGNORE_INDEX, TASKS

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def summary() -> dict[str, object]:
    tokens = np.array([10, 2, 5, 5, 0, 4, 2, 0])  # 22 places of text, padding and specials
    classes = {task: np.zeros(256, dtype=np.int64) for task in TASKS}
    classes["pos"][:2] = 2, 5
    classes["pos"][IGNORE_INDEX] = 1
    classes["ner"][IGNORE_INDEX] = classes["dep"][IGNORE_INDEX] = 8
    totals = {"documents": 1, "sentences": 2, "characters": 9, "words": 4, "instances": 5}
    return summarise(totals, tokens, classes, SPECIAL, {"pos": ["n", "v"], "ner": [], "dep": []})


def test_summary() -> None:
    found = summary()
    assert found["tokens"] == 8
    assert found["words_per_sentence"] == 2
    assert found["tokens_per_word"] == 2
    assert found["unknown_share"] == 0.25
    assert found["padding_share"] == pytest.approx(10 / 28, abs=1e-6)
    assert found["unigram_entropy_nats"] == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert found["tags"]["pos"] == {"v": 5, "n": 2, NO_TAG: 1}  # type: ignore[index]
    assert found["majority_tag_share"]["pos"] == pytest.approx(5 / 7, abs=1e-6)  # type: ignore[index]


def test_entropy() -> None:
    assert entropy(np.array([0, 0])) == 0
    assert entropy(np.array([7])) == 0
    assert entropy(np.array([1, 1, 1, 1, 0])) == pytest.approx(math.log(4), abs=1e-6)


def test_page_tells_it_all() -> None:
    speed = {"annotate": {"seconds": 2.0, "characters_per_second": 100}}
    page = render("mine", {**summary(), "speed": speed}, {"a | b": 3})
    for text in ("# mine", "a \\| b | 3", "| v | 5 | 62.50% |", "DEP tags", "None: the annotator"):
        assert text in page, text


def test_tags_of_strangers_are_shown_and_no_html() -> None:
    statistics = {**summary(), "speed": {}}
    evil = "<script>alert(1)</script>&|\nx"
    statistics["tags"] = {task: {evil: 3} for task in TASKS}
    page = render(evil, statistics, {evil: 1})
    assert "<" not in page
    assert page.count("&lt;script>alert(1)&lt;/script>&amp;\\| x") == 5
