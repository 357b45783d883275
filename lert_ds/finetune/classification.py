"""Sentences and pairs of them, and their classes: features, and how answers are judged."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lert_ds.finetune.examples import TextExample
from lert_ds.finetune.features import Feature, ids_of, with_special
from lert_ds.finetune.settings import TaskConfig
from lert_ds.train.peers import Peers


def encode(
    examples: Sequence[TextExample], tokenizer: Any, settings: TaskConfig, max_length: int
) -> list[Feature]:
    """Return a feature for each example; of what is too long, the longer part loses its end."""
    firsts = ids_of(tokenizer, [example.text for example in examples])
    are_pairs = bool(examples) and examples[0].pair is not None
    seconds = (
        ids_of(tokenizer, [e.pair or "" for e in examples]) if are_pairs else [None] * len(examples)
    )
    features = []
    for number, (example, first, second) in enumerate(zip(examples, firsts, seconds, strict=True)):
        cut_first, cut_second = _fitting(first, second, max_length - (2 if second is None else 3))
        row, begins = with_special(tokenizer, cut_first, cut_second)
        features.append(Feature(row, begins, example.label, number))
    return features


def _fitting(
    first: Sequence[int], second: Sequence[int] | None, room: int
) -> tuple[Sequence[int], Sequence[int] | None]:
    """Return both parts cut to `room` tokens in all: from the longer one, as BERT does."""
    if second is None:
        return first[:room], None
    if len(first) + len(second) <= room:
        return first, second
    shorter = min(len(first), len(second))
    of_longer = max(room - shorter, -(-room // 2))
    if len(first) >= len(second):
        return first[:of_longer], second[: room - of_longer]
    return first[: room - of_longer], second[:of_longer]


class ClassificationJudge:
    """Judges classes; a `Judge` of `lert_ds.train.trainer`."""

    def __init__(self, examples: Sequence[TextExample], features: Sequence[Feature]) -> None:
        """Take what the answers will be to."""
        self._examples = examples
        self._found: list[tuple[int, int]] = []
        self.predictions: list[int | None] = []
        """The class of each example, once judged."""

    def add(self, answers: tuple[Tensor, ...]) -> None:
        """Take the numbers of features, [rows], and the logits of classes, [rows, classes]."""
        numbers, logits = answers
        pairs = torch.stack([numbers, logits.argmax(-1)], dim=-1).tolist()
        self._found += [(number, label) for number, label in pairs if number >= 0]

    def values(self, peers: Peers) -> dict[str, float]:
        """Return `accuracy`."""
        found = dict(pair for part in peers.gather(self._found) for pair in part)
        self.predictions = [found.get(number) for number in range(len(self._examples))]
        right = sum(
            example.label == given
            for example, given in zip(self._examples, self.predictions, strict=True)
        )
        return {"accuracy": right / max(len(self._examples), 1)}
