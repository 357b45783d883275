import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.finetune.entity_score import Entity, entities_of, score

TAGS = ["O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC") for prefix in "BI")]
sentences = st.integers(0, 12).flatmap(
    lambda n: st.tuples(*(st.lists(st.sampled_from(TAGS), min_size=n, max_size=n) for _ in "ab"))
)
corpora = st.lists(sentences, min_size=1, max_size=6)


def as_conlleval_has_it(truths: Any, predictions: Any) -> dict[str, float]:
    """The counts of conlleval (Tjong Kim Sang 2004), token by token as its script keeps them.

    It walks over all sentences as one, with an O between them, and never lists an entity.
    """

    def begins(before: str, tag: str) -> bool:
        prefix, _, kind = tag.partition("-")
        last, _, kind_before = before.partition("-")
        return prefix == "B" or (prefix == "I" and (last == "O" or kind != kind_before))

    def ends(before: str, tag: str) -> bool:
        prefix, _, kind = tag.partition("-")
        last, _, kind_before = before.partition("-")
        return last in ("B", "I") and (prefix in ("B", "O") or kind != kind_before)

    gold, told = (
        list(itertools.chain.from_iterable([*sentence, "O"] for sentence in corpus))
        for corpus in (truths, predictions)
    )
    inside = False
    right = there = found = 0
    before = ("O", "O")
    for one, other in zip(gold, told, strict=True):
        if inside:
            both_end = ends(before[0], one), ends(before[1], other)
            if all(both_end):
                right, inside = right + 1, False
            elif any(both_end) or one.partition("-")[2] != other.partition("-")[2]:
                inside = False
        starts = begins(before[0], one), begins(before[1], other)
        inside |= all(starts) and one.partition("-")[2] == other.partition("-")[2]
        there, found = there + starts[0], found + starts[1]
        before = (one, other)
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    both = precision + recall
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
    }


@settings(deadline=None)
@given(corpora)
def test_scores_are_those_of_conlleval(corpus: Any) -> None:
    truths, predictions = zip(*corpus, strict=True)
    assert score(truths, predictions) == pytest.approx(as_conlleval_has_it(truths, predictions))


@settings(deadline=None)
@given(corpora)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of nothing predicted
def test_scores_are_those_of_seqeval(corpus: Any) -> None:
    metrics = pytest.importorskip(
        "seqeval.metrics",
        reason="needs seqeval: pip install --no-deps --use-pep517 seqeval==1.2.2",
    )
    truths, predictions = ([list(s) for s in side] for side in zip(*corpus, strict=True))
    expected = {
        "precision": metrics.precision_score(truths, predictions, zero_division=0),
        "recall": metrics.recall_score(truths, predictions, zero_division=0),
        "f1": metrics.f1_score(truths, predictions, zero_division=0),
    }
    assert score(truths, predictions) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=20))
def test_entities_lie_one_after_the_other_and_hold_all_that_is_no_o(tags: Sequence[str]) -> None:
    found = sorted(entities_of(tags), key=lambda entity: entity.start)
    assert [n for e in found for n in range(e.start, e.end)] == [
        n for n, tag in enumerate(tags) if tag != "O"
    ]
    for entity in found:
        assert {tags[n].partition("-")[2] for n in range(entity.start, entity.end)} == {entity.kind}
        assert all(tags[n].startswith("I") for n in range(entity.start + 1, entity.end))


def test_a_worked_example() -> None:
    assert entities_of("B-PER I-PER O B-LOC".split()) == {
        Entity("PER", 0, 2), Entity("LOC", 3, 4),
    }  # fmt: skip
    # An I- of another kind begins an entity; so does one after O.
    assert entities_of("I-PER I-LOC O I-LOC".split()) == {
        Entity("PER", 0, 1), Entity("LOC", 1, 2), Entity("LOC", 3, 4),
    }  # fmt: skip
    truth, given_tags = ["B-PER I-PER O B-LOC".split()], ["B-PER O O B-LOC".split()]
    assert score(truth, given_tags) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert score([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_sentences_of_other_lengths_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        score([["O"], ["O"]], [["O"]])
