"""Entity F1 as the shared tasks of CoNLL count it: an entity is right whole or not at all.

    B-PER I-PER O B-LOC   →   {(PER, 0, 2), (LOC, 3, 4)}

The rules are those of `conlleval`, which `seqeval` follows too: an I- after nothing of its kind
begins an entity. Precision and recall are over all entities together (micro).
"""

from collections.abc import Sequence
from typing import NamedTuple


class Entity(NamedTuple):
    """A named entity."""

    kind: str
    start: int
    """Its first token, from 0."""
    end: int
    """The token after its last."""


def entities_of(tags: Sequence[str]) -> set[Entity]:
    """Return the entities that a sentence's tags name: O, and B- and I- with a kind."""
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, here = tag.partition("-")
        if kind and (prefix != "I" or here != kind):
            found.add(Entity(kind, start, place))
            kind = ""
        if not kind and prefix != "O":
            kind, start = here, place
    return found


def score(
    truths: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return `precision`, `recall` and `f1` of sentences' tags, each from 0 to 1."""
    right = told = there = 0
    for truth, prediction in zip(truths, predictions, strict=True):
        wanted, found = entities_of(truth), entities_of(prediction)
        right += len(wanted & found)
        told += len(found)
        there += len(wanted)
    return {
        "precision": right / told if told else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (told + there) if told + there else 0.0,
    }
