from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.finetune.classification import ClassificationJudge, encode
from lert_ds.finetune.examples import TextExample
from lert_ds.finetune.settings import TaskConfig

SETTINGS = TaskConfig(name="ocnli")
SIGNS = "".join(chr(0x4E00 + number) for number in range(60))
signs = st.text(SIGNS, max_size=40)


def pieces(tokenizer: Any, feature: Any) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(feature.input_ids.tolist()))


def test_a_sentence_and_a_pair_between_special_tokens(tokenizer: Any) -> None:
    (single,) = encode([TextExample("一丁ab", None, 1)], tokenizer, SETTINGS, 16)
    assert pieces(tokenizer, single) == ["[CLS]", "一", "丁", "a", "##b", "[SEP]"]
    assert (single.second, single.labels, single.example) == (6, 1, 0)
    (pair,) = encode([TextExample("一丁", "丂", 0)], tokenizer, SETTINGS, 16)
    assert pieces(tokenizer, pair) == ["[CLS]", "一", "丁", "[SEP]", "丂", "[SEP]"]
    assert pair.second == 4


def test_rows_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    """Where nothing is too long, transformers makes the same rows and token types."""
    examples = [
        TextExample("一丁ab。", "丂", 0),
        TextExample("丄", "", 1),
        TextExample("", "丅", 2),
    ]
    features = encode(examples, tokenizer, SETTINGS, 64)
    expected = tokenizer([e.text for e in examples], [e.pair for e in examples])
    for number, feature in enumerate(features):
        length = len(feature.input_ids)
        assert feature.input_ids.tolist() == expected["input_ids"][number]
        types = [0] * feature.second + [1] * (length - feature.second)
        assert types == expected["token_type_ids"][number]
        assert (feature.example, feature.labels) == (number, examples[number].label)


def longest_first(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """The rule of BERT's run_classifier.py: token by token, off the end of the longer part."""
    one, other = list(first), list(second)
    while len(one) + len(other) > room:
        (one if len(one) > len(other) else other).pop()
    return one, other


@settings(deadline=None)
@given(signs, signs, st.integers(16, 50))
def test_of_a_pair_that_is_too_long_the_longer_part_loses_its_end(
    tokenizer: Any, first: str, second: str, max_length: int
) -> None:
    (feature,) = encode([TextExample(first, second, 0)], tokenizer, SETTINGS, max_length)
    row = feature.input_ids.tolist()
    assert len(row) <= max_length
    ids = [tokenizer.convert_tokens_to_ids(list(text)) for text in (first, second)]
    found = [row[1 : feature.second - 1], row[feature.second : -1]]
    expected = longest_first(*ids, max_length - 3)
    # Of parts of one length, both rules may give the odd token to either.
    assert sum(map(len, found)) == sum(map(len, expected))
    for part, other, whole in zip(found, expected, ids, strict=True):
        assert part == whole[: len(part)]
        assert abs(len(part) - len(other)) <= 1


@settings(deadline=None)
@given(signs, st.integers(16, 50))
def test_a_sentence_that_is_too_long_loses_its_end(
    tokenizer: Any, text: str, max_length: int
) -> None:
    (feature,) = encode([TextExample(text, None, 0)], tokenizer, SETTINGS, max_length)
    expected = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    assert feature.input_ids.tolist() == expected
    assert feature.second == len(expected)


def test_nothing_is_made_of_nothing(tokenizer: Any) -> None:
    assert encode([], tokenizer, SETTINGS, 16) == []


@pytest.mark.parametrize(
    "shares",
    [
        [[[0, 1, 2, 3, 4]]],
        [[[4, 2], [0], [1, 3]]],
        [[[3, 1], [4]], [[0, 2], [-1]]],
        [[[-1]], [[4, 3, 2, 1, 0]]],
        [[[0]], [[1]], [[2, -1]], [[3, 4]]],
    ],
)
def test_classes_are_judged_alike_however_they_are_shared_out(
    judge_in_shares: Callable[..., Any], shares: Any
) -> None:
    examples = [TextExample("", None, label) for label in (0, 1, 2, 0, 1)]
    answered = [0, 1, 1, 0, 2]
    logits = torch.randn(5, 3)
    logits[torch.arange(5), torch.tensor(answered)] = 9.0
    values, predictions = judge_in_shares(
        lambda: ClassificationJudge(examples, []), [logits], shares
    )
    assert predictions == answered
    assert values == {"accuracy": 0.6}


def test_what_was_not_answered_is_wrong(gathered: Any) -> None:
    judge = ClassificationJudge([TextExample("", None, 0), TextExample("", None, 1)], [])
    judge.add((torch.tensor([1]), torch.tensor([[0.0, 1.0]])))
    assert judge.values(gathered()) == {"accuracy": 0.5}
    assert judge.predictions == [None, 1]
