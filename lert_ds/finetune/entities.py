"""Sentences and the tags of their tokens: features, and how answers are judged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lert_ds.finetune import entity_score
from lert_ds.finetune.examples import EntityExample
from lert_ds.finetune.features import UNKNOWN, Feature, in_chunks, windows, with_special
from lert_ds.finetune.settings import TaskConfig
from lert_ds.train.peers import Peers


class Places(NamedTuple):
    """The tokens of a sentence that a feature answers for."""

    tokens: NDArray[np.int64]
    """Their places in the sentence."""
    columns: NDArray[np.int64]
    """The places of their first pieces in the feature."""


def encode(
    examples: Sequence[EntityExample], tokenizer: Any, settings: TaskConfig, max_length: int
) -> list[Feature]:
    """Return features that answer for each token once: its first piece does.

    A token that the tokenizer makes nothing of (a blank, say) has no piece, and counts as outside.
    """
    room = max_length - 2
    overlap = min(settings.stride, room // 4)

    def pieces(sentences: Sequence[Any]) -> Any:
        encoded = tokenizer(
            [list(tokens) for tokens in sentences], is_split_into_words=True, verbose=False,
            add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
        )  # fmt: skip
        return [(encoded["input_ids"][k], encoded.word_ids(k)) for k in range(len(sentences))]

    features = []
    encoded = in_chunks(pieces, [example.tokens for example in examples])  # type: ignore[misc]
    for number, (example, (ids, words)) in enumerate(zip(examples, encoded, strict=True)):
        of_pieces = np.array(words, dtype=np.int64)
        opens = np.ones(len(ids), dtype=np.bool_)
        opens[1:] = of_pieces[1:] != of_pieces[:-1]
        tags = np.array(example.tags, dtype=np.int64)
        for window in windows(len(ids), room, overlap):
            row, begins = with_special(tokenizer, ids[window.start : window.end], None)
            own = np.arange(window.answers_from, window.answers_to)
            own = own[opens[own]]
            places = Places(of_pieces[own], own - window.start + 1)
            labels = np.full(len(row), UNKNOWN, dtype=np.int64)
            labels[places.columns] = tags[places.tokens]
            features.append(Feature(row, begins, labels, number, places))
    return features


class EntityJudge:
    """Judges tags by the entities that they name; a `Judge` of `lert_ds.train.trainer`."""

    def __init__(
        self, examples: Sequence[EntityExample], features: Sequence[Feature], labels: Sequence[str]
    ) -> None:
        """Take what the answers will be to."""
        self._examples, self._features, self._labels = examples, features, labels
        self._found: list[tuple[int, list[int]]] = []
        self.predictions: list[list[str]] = []
        """The tags of each sentence, once judged."""

    def add(self, answers: tuple[Tensor, ...]) -> None:
        """Take the numbers of features, [rows], and the logits of tags, [rows, length, tags]."""
        numbers, logits = answers
        predicted = logits.argmax(-1).cpu().numpy()
        for number, row in zip(numbers.tolist(), predicted, strict=True):
            if number >= 0:
                self._found.append((number, row[self._features[number].origin.columns].tolist()))

    def values(self, peers: Peers) -> dict[str, float]:
        """Return `precision`, `recall` and `f1`."""
        outside = self._labels[0]
        tags = [[outside] * len(example.tokens) for example in self._examples]
        for number, row in (pair for part in peers.gather(self._found) for pair in part):
            feature = self._features[number]
            for token, tag in zip(feature.origin.tokens.tolist(), row, strict=True):
                tags[feature.example][token] = self._labels[tag]
        self.predictions = tags
        truths = [[self._labels[tag] for tag in example.tags] for example in self._examples]
        return entity_score.score(truths, tags)
