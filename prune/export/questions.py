"""Batches whose answers are known, to measure the accuracy of a graph on: a corpus or examples."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lert_ds import tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import evaluation_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError
from lert_ds.evaluation import shared_tasks
from lert_ds.labels import IGNORE_INDEX
from lert_ds.objective import Batch
from lert_ds.vocabulary_view import in_vocabulary_of
from prune.export.check import Inputs
from prune.export.export_config import AccuracyConfig, HeadName

BATCH_SIZE = 8
UNKNOWN = -1
"""Class of a token whose true one is not known: it counts nowhere."""
_OF_A_TEXT = '{"text": "…", "label": "…"}, with a "pair" or without'
_OF_TOKENS = '{"tokens": ["…", …], "labels": ["…", …]}'


@dataclass(frozen=True)
class Question:
    """A batch, and what is right."""

    inputs: Inputs
    """Of the graph."""
    places: NDArray[np.int64] | None
    """[answers]: positions of the flattened [batch * length]; None where each text is asked."""
    answers: dict[str, tuple[str, NDArray[np.int64]]]
    """Accuracy to the output that answers, and the right classes [answers], some UNKNOWN."""


def make_questions(
    config: AccuracyConfig,
    head: HeadName,
    shape: LertConfig,
    folder: Path,
    *,
    masked_positions: bool,
) -> list[Question]:
    """Return what the graphs are asked; nothing where the configuration names nothing.

    Args:
        config: Corpus or examples.
        head: Of the model, one that `config` is for.
        shape: Of the model.
        folder: Model folder; its tokenizer reads corpus and examples.
        masked_positions: Whether that is an input of the graphs.

    Raises:
        UserError: corpus or examples cannot be used with this model.
    """
    if config.corpus:
        questions = list(_of_corpus(config, shape, folder, masked_positions=masked_positions))
    elif config.examples is not None:
        tokens = head == "token_classification"
        reader = _Reader(config.examples, tokenizer_files.load(folder), shape, tokens=tokens)
        questions = list(reader.questions(config.instances))
    else:
        return []
    known = [right for question in questions for _, right in question.answers.values()]
    if not any((right != UNKNOWN).any() for right in known):
        where = config.examples or config.corpus[0]
        raise ConfigError(f"accuracy: there is nothing to answer in {where}; name another")
    return questions


def _of_corpus(
    config: AccuracyConfig, shape: LertConfig, folder: Path, *, masked_positions: bool
) -> Iterator[Question]:
    corpus = in_vocabulary_of(Corpus(config.corpus), folder)
    if corpus.length > shape.max_position_embeddings:
        raise ConfigError(
            f"accuracy.corpus = {config.corpus[0]}: its instances have {corpus.length} tokens, the "
            f"model takes {shape.max_position_embeddings}; prepare one with a smaller max_length"
        )
    tasks = shared_tasks(shape, corpus.tag_sets)
    left = config.instances
    for whole in evaluation_batches(corpus, MaskingConfig(), BATCH_SIZE):
        batch = _first(whole, left)
        real = batch.attention_mask
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": torch.ones_like(batch.input_ids) if real is None else real.long(),
            "token_type_ids": torch.zeros_like(batch.input_ids),
        }
        if masked_positions:
            inputs["masked_positions"] = batch.masked_positions
        answers = {"mlm/accuracy": ("logits", batch.labels.numpy())}
        for task in tasks:
            tags = batch.tags[task].numpy()
            right = np.where(tags == IGNORE_INDEX, UNKNOWN, tags)
            answers[f"{task}/accuracy"] = (f"{task}_logits", right)
        yield Question(inputs, batch.masked_positions.numpy(), answers)
        left -= len(batch.input_ids)
        if not left:
            return


def _first(batch: Batch, count: int) -> Batch:
    """Return the first `count` instances of a batch."""
    own = batch.masked_positions < count * batch.input_ids.shape[1]
    return Batch(
        input_ids=batch.input_ids[:count],
        attention_mask=None if batch.attention_mask is None else batch.attention_mask[:count],
        masked_positions=batch.masked_positions[own],
        labels=batch.labels[own],
        tags={task: tags[own] for task, tags in batch.tags.items()},
    )


@dataclass(frozen=True)
class _Reader:
    """A file of JSON lines, an example a line, to questions."""

    path: Path
    tokenizer: Any
    shape: LertConfig
    tokens: bool
    """Whether each token has a label, or each text."""

    def questions(self, count: int) -> Iterator[Question]:
        """Yield the first `count` examples in batches."""
        encode = self._encode_tokens if self.tokens else self._encode_text
        examples = itertools.islice((encode(*row) for row in self._rows()), count)
        while batch := list(itertools.islice(examples, BATCH_SIZE)):
            yield self._assemble(batch)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.is_file():
            raise ConfigError(f"accuracy.examples = {self.path}: there is no such file")
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
                    raise self._refusal(number, f"not JSON ({error})") from error
                if not isinstance(row, dict):
                    raise self._refusal(number, "no JSON object")
                yield number, row

    def _encode_text(self, number: int, row: dict[str, Any]) -> tuple[Any, list[int]]:
        text, pair = row.get("text"), row.get("pair")
        if not isinstance(text, str) or not isinstance(pair, str | None) or "label" not in row:
            raise self._refusal(number, f"not of the form {_OF_A_TEXT}")
        return self._encode(text, pair), [self._class_of(number, row["label"])]

    def _encode_tokens(self, number: int, row: dict[str, Any]) -> tuple[Any, list[int]]:
        tokens, labels = row.get("tokens"), row.get("labels")
        if (
            not isinstance(tokens, list)
            or not isinstance(labels, list)
            or len(tokens) != len(labels)
            or not all(isinstance(token, str) for token in tokens)
        ):
            raise self._refusal(number, f"not of the form {_OF_TOKENS} with a label for each token")
        encoded = self._encode(tokens, None, is_split_into_words=True)
        classes = [self._class_of(number, label) for label in labels]
        # A token's first piece answers for it.
        words = encoded.word_ids()
        return encoded, [
            UNKNOWN if word is None or word == before else classes[word]
            for before, word in zip([None, *words], words, strict=False)
        ]

    def _encode(self, text: Any, pair: str | None, **how: Any) -> Any:
        longest = self.shape.max_position_embeddings
        return self.tokenizer(text, pair, truncation=True, max_length=longest, **how)

    def _class_of(self, number: int, label: Any) -> int:
        names: dict[int, str] = self.shape.id2label
        for index, name in names.items():
            if label == name or (label == index and not isinstance(label, bool)):
                return int(index)
        there = ", ".join(map(str, names.values()))
        raise self._refusal(number, f"{label!r} is no label of the model (there are: {there})")

    def _assemble(self, examples: Sequence[tuple[Any, list[int]]]) -> Question:
        names = ("input_ids", "attention_mask", "token_type_ids")
        padding = (self.tokenizer.pad_token_id, 0, 0)
        inputs = {
            name: _pad((encoded[name] for encoded, _ in examples), filler)
            for name, filler in zip(names, padding, strict=True)
        }
        if not self.tokens:
            right = np.array([classes[0] for _, classes in examples])
            return Question(inputs, None, {"accuracy": ("logits", right)})
        right = _pad((classes for _, classes in examples), UNKNOWN).flatten().numpy()
        places = np.flatnonzero(right != UNKNOWN)
        return Question(inputs, places, {"accuracy": ("logits", right[places])})

    def _refusal(self, number: int, reason: str) -> ConfigError:
        return ConfigError(
            f"accuracy.examples = {self.path}: line {number} is wrong: {reason}; correct it"
        )


def _pad(rows: Iterable[Sequence[int]], filler: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=filler
    )
