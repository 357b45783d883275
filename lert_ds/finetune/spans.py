"""Questions about a context: features, and how the answers found in it are judged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lert_ds.finetune import span_score
from lert_ds.finetune.examples import SpanExample
from lert_ds.finetune.features import Feature, ids_of, in_chunks, windows, with_special
from lert_ds.finetune.settings import TaskConfig
from lert_ds.train.peers import Peers


class Characters(NamedTuple):
    """Where the context's tokens of a feature stand in the context's text."""

    starts: NDArray[np.int32]
    """First character of each token, [tokens]."""
    ends: NDArray[np.int32]
    """The character after its last."""


def encode(
    examples: Sequence[SpanExample], tokenizer: Any, settings: TaskConfig, max_length: int
) -> list[Feature]:
    """Return the windows of each context behind its question, which is cut where it is very long.

    The label of a window is the first answer that stands in it whole, or [CLS], place 0.
    """

    def tokens(texts: Sequence[str]) -> Any:
        encoded = tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False,
            return_token_type_ids=False, return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    # Several questions ask about one context: it is cut into tokens once.
    contexts = list(dict.fromkeys(example.context for example in examples))
    cut = dict(zip(contexts, in_chunks(tokens, contexts, 256), strict=True))
    questions = ids_of(tokenizer, [example.question for example in examples])
    features = []
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        pieces, offsets = cut[example.context]
        characters = np.array(offsets, dtype=np.int32).reshape(-1, 2)
        question = question[: min(settings.question_length, max_length // 2)]
        room = max_length - 3 - len(question)
        answers = _token_spans(example, characters)
        for window in windows(len(pieces), room, min(settings.stride, room // 4)):
            row, begins = with_special(tokenizer, question, pieces[window.start : window.end])
            inside = (s for s in answers if window.start <= s[0] and s[1] < window.end)
            offset = begins - window.start
            first, last = next(((s[0] + offset, s[1] + offset) for s in inside), (0, 0))
            starts, ends = characters[window.start : window.end].T
            features.append(Feature(row, begins, (first, last), number, Characters(starts, ends)))
    return features


def _token_spans(example: SpanExample, characters: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Return the first and the last token of each answer that stands in the context."""
    spans = []
    for answer in example.answers:
        if answer.start is None:
            continue
        end = answer.start + len(answer.text)
        inside = np.flatnonzero((characters[:, 0] < end) & (characters[:, 1] > answer.start))
        if len(inside):
            spans.append((int(inside[0]), int(inside[-1])))
    return spans


def best_spans(
    starts: Tensor, ends: Tensor, first: Tensor, after: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best span of each row: its score, its first and its last place, each [rows].

    The score is the sum of both logits; of all spans of up to `longest` places in [first, after).

    Args:
        starts: Logits of a span's first place, [rows, length].
        ends: Of its last place.
        first: The first place allowed, int64 [rows].
        after: The place after the last one allowed.
        longest: Places of the longest span.
    """
    places = torch.arange(starts.shape[1], device=starts.device)
    allowed = (places >= first[:, None]) & (places < after[:, None])
    lowest = torch.finfo(torch.float32).min / 4
    starts = starts.float().masked_fill(~allowed, lowest)
    ends = ends.float().masked_fill(~allowed, lowest)
    # [rows, length, longest]: the end that is 0, 1, 2, … places after each start.
    reach = torch.nn.functional.pad(ends, (0, longest - 1), value=lowest).unfold(1, longest, 1)
    best, ahead = reach.max(-1)
    score, at = (starts + best).max(-1)
    return score, at, at + ahead.gather(1, at[:, None])[:, 0]


class SpanJudge:
    """Judges answers; a `Judge` of `lert_ds.train.trainer`.

    Of the windows of a question that answers whose span has the highest score.
    """

    def __init__(
        self, examples: Sequence[SpanExample], features: Sequence[Feature], longest: int
    ) -> None:
        """Take what the answers will be to; `longest` is in tokens."""
        self._examples, self._features, self._longest = examples, features, longest
        self._found: list[tuple[int, float, int, int]] = []
        self.predictions: dict[str, str] = {}
        """Question to answer, once judged: what the official scripts read."""

    def add(self, answers: tuple[Tensor, ...]) -> None:
        """Take the numbers of features, [rows], and two logits of each token, [rows, length]."""
        numbers, starts, ends = (tensor.cpu() for tensor in answers)
        kept = (numbers >= 0).nonzero()[:, 0]
        rows = [self._features[number] for number in numbers[kept].tolist()]
        if not rows:
            return
        first = torch.tensor([row.second for row in rows])
        after = torch.tensor([row.second + len(row.origin.starts) for row in rows])
        found = best_spans(starts[kept], ends[kept], first, after, self._longest)
        for row, score, begin, end in zip(rows, *(f.tolist() for f in found), strict=True):
            if len(row.origin.starts):
                self._found.append(
                    (
                        row.example,
                        score,
                        int(row.origin.starts[begin - row.second]),
                        int(row.origin.ends[end - row.second]),
                    )
                )

    def values(self, peers: Peers) -> dict[str, float]:
        """Return `em`, `f1` and `average`."""
        best: dict[int, tuple[float, int, int]] = {}
        for number, score, start, end in (f for part in peers.gather(self._found) for f in part):
            if number not in best or score > best[number][0]:
                best[number] = (score, start, end)
        given = []
        for number, example in enumerate(self._examples):
            _, start, end = best.get(number, (0.0, 0, 0))
            given.append(example.context[start:end])
        names = [example.identity for example in self._examples]
        self.predictions = dict(zip(names, given, strict=True))
        truths = [[answer.text for answer in example.answers] for example in self._examples]
        return span_score.score(truths, given)
