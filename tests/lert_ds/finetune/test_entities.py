from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.finetune import entity_score
from lert_ds.finetune.entities import EntityJudge, encode
from lert_ds.finetune.examples import EntityExample
from lert_ds.finetune.features import UNKNOWN
from lert_ds.finetune.settings import TaskConfig

LABELS = ("O", "B-PER", "I-PER")
SETTINGS = TaskConfig(name="msra", stride=6)
# Signs, words of several pieces, what the tokenizer does not know, what it makes nothing of.
token = st.sampled_from(["一", "丁", "七", "abc", "x9", "龘", "\u3000", "\u200b", "2026"])
sentence = st.lists(st.tuples(token, st.integers(0, 2)), min_size=1, max_size=60)


def example_of(pairs: list[tuple[str, int]]) -> EntityExample:
    tokens, tags = zip(*pairs, strict=True)
    return EntityExample(tokens, tags)


def test_the_first_piece_of_a_token_has_its_tag(tokenizer: Any) -> None:
    pairs = [("一", 0), ("abc", 1), (" ", 1), ("丁", 2)]
    (feature,) = encode([example_of(pairs)], tokenizer, SETTINGS, 16)
    pieces = tokenizer.convert_ids_to_tokens(feature.input_ids.tolist())
    assert pieces == ["[CLS]", "一", "a", "##b", "##c", "丁", "[SEP]"]
    none = UNKNOWN
    assert feature.labels.tolist() == [none, 0, 1, none, none, 2, none]
    assert feature.origin.tokens.tolist() == [0, 1, 3]
    assert feature.origin.columns.tolist() == [1, 2, 5]
    assert feature.second == len(pieces)


@settings(deadline=None)
@given(st.lists(sentence, min_size=1, max_size=4), st.integers(16, 40))
def test_each_token_is_answered_for_once_over_all_windows(
    tokenizer: Any, sentences: Any, max_length: int
) -> None:
    examples = [example_of(pairs) for pairs in sentences]
    features = encode(examples, tokenizer, SETTINGS, max_length)
    answered: list[list[int]] = [[] for _ in examples]
    for feature in features:
        row, labels = feature.input_ids.tolist(), feature.labels
        assert len(row) <= max_length
        assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        tokens, columns = feature.origin
        answered[feature.example] += tokens.tolist()
        assert np.flatnonzero(labels != UNKNOWN).tolist() == columns.tolist()
        for place, column in zip(tokens, columns, strict=True):
            word = examples[feature.example].tokens[place]
            assert row[column] == tokenizer(word, add_special_tokens=False)["input_ids"][0]
            assert labels[column] == examples[feature.example].tags[place]
    for example, places in zip(examples, answered, strict=True):
        has_pieces = [bool(tokenizer.tokenize(word)) for word in example.tokens]
        assert places == [n for n, there in enumerate(has_pieces) if there]


def test_a_long_sentence_keeps_its_neighbours(tokenizer: Any) -> None:
    example = EntityExample(("一",) * 60, (0,) * 60)
    features = encode([example], tokenizer, SETTINGS, 28)  # 26 tokens a window, 6 shared
    assert [len(feature.input_ids) - 2 for feature in features] == [24, 24, 24]
    for feature in features[1:]:
        assert feature.origin.columns[0] >= 1 + 3  # half of what is shared, at least


@pytest.fixture
def long_task(tokenizer: Any) -> Any:
    """Sentences of several windows, their features, and logits that are right but for one tag."""
    generator = np.random.default_rng(0)
    examples = [
        EntityExample(("一",) * length, tuple(generator.integers(0, 3, length).tolist()))
        for length in (5, 40, 17, 30)
    ]
    features = encode(examples, tokenizer, SETTINGS, 20)
    logits = torch.zeros(len(features), 20, 3)
    for number, feature in enumerate(features):
        known = np.flatnonzero(feature.labels != UNKNOWN)
        logits[number, known, feature.labels[known]] = 1.0
        # What no window answers for is loud and wrong.
        logits[number, np.setdiff1d(np.arange(20), known), 1] = 9.0
    return examples, features, logits


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_tags_are_judged_alike_however_they_are_shared_out(
    long_task: Any, judge_in_shares: Callable[..., Any], processes: int, batch_size: int
) -> None:
    examples, features, logits = long_task
    logits = logits.clone()
    logits[0, 1] = torch.tensor([0.0, 0.0, 5.0])
    order = torch.randperm(len(features)).tolist()
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    shares = [[*batches[rank::processes], [-1]] for rank in range(processes)]
    values, predictions = judge_in_shares(
        lambda: EntityJudge(examples, features, LABELS), [logits], shares
    )
    truths = [[LABELS[tag] for tag in example.tags] for example in examples]
    expected = [list(tags) for tags in truths]
    expected[0][0] = "I-PER"
    assert predictions == expected
    assert values == entity_score.score(truths, expected)


def test_right_tags_are_all_right_and_what_is_not_answered_is_outside(
    long_task: Any, gathered: Any
) -> None:
    examples, features, logits = long_task
    judge = EntityJudge(examples, features, LABELS)
    assert judge.values(gathered())["recall"] == 0
    assert {tag for tags in judge.predictions for tag in tags} == {"O"}
    judge = EntityJudge(examples, features, LABELS)
    judge.add((torch.arange(len(features)), logits))
    assert judge.values(gathered()) == {"precision": 1, "recall": 1, "f1": 1}
