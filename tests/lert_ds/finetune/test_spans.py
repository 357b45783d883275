from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds import tokenizer_files
from lert_ds.finetune import readers
from lert_ds.finetune.examples import Answer, SpanExample
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.spans import SpanJudge, best_spans, encode

SETTINGS = TaskConfig(name="cmrc2018", stride=6, question_length=8)
SIGNS = "一丁七万丈三上下"


def example(
    context: str, *answers: str, question: str = "不？", identity: str = "Q"
) -> SpanExample:
    given_answers = (Answer(a, at if (at := context.find(a)) >= 0 else None) for a in answers)
    return SpanExample(identity, question, context, tuple(given_answers))


def test_a_question_its_context_and_the_answers_tokens(tokenizer: Any) -> None:
    (feature,) = encode([example("一 abc 丁。", "abc 丁")], tokenizer, SETTINGS, 32)
    pieces = tokenizer.convert_ids_to_tokens(feature.input_ids.tolist())
    assert pieces == [
        "[CLS]", "不", "？", "[SEP]", "一", "a", "##b", "##c", "丁", "。", "[SEP]",
    ]  # fmt: skip
    assert (feature.second, feature.labels) == (4, (5, 8))
    assert feature.origin.starts.tolist() == [0, 2, 3, 4, 6, 7]
    assert feature.origin.ends.tolist() == [1, 3, 4, 5, 7, 8]


@settings(deadline=None)
@given(
    st.text(SIGNS + "ab9 ，龘", min_size=1, max_size=80),
    st.text(SIGNS + "x", max_size=30),
    st.integers(16, 40),
    st.data(),
)
def test_labels_lead_back_to_the_answer(
    tokenizer: Any, context: str, question: str, max_length: int, data: Any
) -> None:
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, min(start + 6, len(context))))
    text = context[start:end]
    asked = SpanExample("Q", question, context, (Answer(text, start),))
    features = encode([asked], tokenizer, SETTINGS, max_length)
    encoded = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    wanted = [n for n, (a, b) in enumerate(offsets) if a < end and b > start]
    covered, placed = set(), 0
    for feature in features:
        row = feature.input_ids.tolist()
        starts, ends = feature.origin
        assert len(row) <= max_length
        assert feature.second - 2 <= min(SETTINGS.question_length, max_length // 2)
        assert len(row) == feature.second + len(starts) + 1
        # The window's place in the context: its tokens are those there.
        (at,) = [n for n in range(len(offsets) + 1) if len(starts) == 0 or (
            n < len(offsets) and offsets[n][0] == starts[0])][:1]  # fmt: skip
        assert row[feature.second : -1] == encoded["input_ids"][at : at + len(starts)]
        assert [tuple(pair) for pair in zip(starts, ends, strict=True)] == (
            offsets[at : at + len(starts)]
        )
        covered |= set(range(at, at + len(starts)))
        is_inside = bool(wanted) and at <= wanted[0] and wanted[-1] < at + len(starts)
        if not is_inside:
            assert feature.labels == (0, 0)
            continue
        placed += 1
        first, last = (place - feature.second for place in feature.labels)
        found = context[starts[first] : ends[last]]
        # The tokens of the answer, whole: an answer that begins or ends with a blank loses it.
        assert (first + at, last + at) == (wanted[0], wanted[-1])
        assert text.strip() in found
        assert len(found) >= len(text.strip())
    assert covered == set(range(len(offsets)))
    # An answer no longer than what windows share, and one token, stands whole in one of them.
    room = max_length - 1 - features[0].second
    if wanted and len(wanted) <= min(SETTINGS.stride, room // 4) + 1:
        assert placed


def test_the_first_answer_that_stands_whole_in_a_window_is_learnt(tokenizer: Any) -> None:
    context = "一" * 20 + "七万" + "一" * 20 + "丈"
    asked = example(context, "七万", "丈", "没有")
    first, *_, last = encode([asked], tokenizer, SETTINGS, 20)
    assert first.labels == (0, 0)
    assert last.labels[0] == last.labels[1]
    assert context[last.origin.starts[last.labels[0] - last.second]] == "丈"
    (whole,) = encode([asked], tokenizer, SETTINGS, 64)
    assert whole.labels == (whole.second + 20, whole.second + 21)


def test_an_answer_that_is_nowhere_has_no_place(tokenizer: Any) -> None:
    (feature,) = encode([example("一丁", "万")], tokenizer, SETTINGS, 20)
    assert feature.labels == (0, 0)


def test_questions_about_one_context_are_as_if_alone(tokenizer: Any) -> None:
    asked = [example("一丁七" * 9, "丁七", question=q) for q in ("不？", "上下？", "不？")]
    together = encode(asked, tokenizer, SETTINGS, 20)
    alone = [f for one in asked for f in encode([one], tokenizer, SETTINGS, 20)]
    assert [f.input_ids.tolist() for f in together] == [f.input_ids.tolist() for f in alone]
    assert [f.labels for f in together] == [f.labels for f in alone]
    assert sorted({f.example for f in together}) == [0, 1, 2]


@st.composite
def searches(draw: st.DrawFn) -> tuple[Any, Any, Any, Any, int]:
    rows, length = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    scale = draw(st.sampled_from([1.0, 50.0]))
    starts, ends = (scale * torch.randn(rows, length, generator=generator) for _ in "ab")
    first = torch.randint(0, length, (rows,), generator=generator)
    after = first + 1 + (torch.rand(rows, generator=generator) * (length - first)).long()
    return starts, ends, first, after.clamp(max=length), draw(st.integers(1, 15))


@settings(deadline=None)
@given(searches())
def test_the_best_span_is_the_best_of_all(search: Any) -> None:
    starts, ends, first, after, longest = search
    scores, begins, finishes = best_spans(starts, ends, first, after, longest)
    for row in range(len(starts)):
        low, high = int(first[row]), int(after[row])
        all_spans = {
            (i, j): float(starts[row, i] + ends[row, j])
            for i in range(low, high)
            for j in range(i, min(high, i + longest))
        }
        best = max(all_spans.values())
        assert float(scores[row]) == pytest.approx(best, rel=1e-6)
        assert all_spans[int(begins[row]), int(finishes[row])] == pytest.approx(best, rel=1e-6)


def test_half_precision_and_padding_win_nothing() -> None:
    starts = torch.tensor([[9.0, 1.0, 2.0, -1e4]], dtype=torch.bfloat16)
    ends = torch.tensor([[9.0, 3.0, 1.0, -1e4]], dtype=torch.bfloat16)
    found = best_spans(starts, ends, torch.tensor([1]), torch.tensor([3]), 4)
    assert [value.item() for value in found] == [4.0, 1, 1]
    assert found[0].dtype == torch.float32


@pytest.fixture
def long_task(tokenizer: Any) -> Any:
    """Questions about contexts of several windows, and random logits of each token."""
    generator = np.random.default_rng(0)
    asked = [
        example("".join(generator.choice(list(SIGNS), length)) + "下上", "下上", identity=f"Q{k}")
        for k, length in enumerate((4, 60, 25, 9))
    ]
    features = encode(asked, tokenizer, SETTINGS, 24)
    torch.manual_seed(0)
    return asked, features, torch.randn(len(features), 24), torch.randn(len(features), 24)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_of_all_windows_the_best_span_answers_however_they_are_shared_out(
    long_task: Any, judge_in_shares: Callable[..., Any], processes: int, batch_size: int
) -> None:
    asked, features, starts, ends = long_task
    order = torch.randperm(len(features)).tolist()
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    shares = [[*batches[rank::processes], [-1]] for rank in range(processes)]
    values, predictions = judge_in_shares(
        lambda: SpanJudge(asked, features, 5), [starts, ends], shares
    )
    for number, one in enumerate(asked):
        spans = [
            (float(starts[row, i] + ends[row, j]), row, i - feature.second, j - feature.second)
            for row, feature in enumerate(features)
            if feature.example == number
            for i in range(feature.second, feature.second + len(feature.origin.starts))
            for j in range(i, min(i + 5, feature.second + len(feature.origin.starts)))
        ]
        _, row, i, j = max(spans)
        origin = features[row].origin
        assert predictions[one.identity] == one.context[origin.starts[i] : origin.ends[j]]
    assert values["average"] == pytest.approx((values["em"] + values["f1"]) / 2)


def test_right_logits_give_right_answers(long_task: Any, gathered: Any) -> None:
    asked, features, starts, ends = long_task
    for number, feature in enumerate(features):
        if feature.labels != (0, 0):
            starts[number, feature.labels[0]] += 20
            ends[number, feature.labels[1]] += 20
    judge = SpanJudge(asked, features, 5)
    judge.add((torch.arange(len(features)), starts, ends))
    assert judge.values(gathered()) == {"em": 1, "f1": 1, "average": 1}
    assert judge.predictions == {one.identity: "下上" for one in asked}


def test_what_is_not_answered_or_has_no_context_is_wrong(tokenizer: Any, gathered: Any) -> None:
    asked = [example("一丁", "丁"), example("", "丁", identity="empty")]
    features = encode(asked, tokenizer, SETTINGS, 20)
    judge = SpanJudge(asked, features, 5)
    judge.add((torch.tensor([1, -1]), torch.zeros(2, 20), torch.zeros(2, 20)))
    assert judge.values(gathered()) == {"em": 0, "f1": 0, "average": 0}
    assert judge.predictions == {"Q": "", "empty": ""}


SHARED = Path(__file__).parents[4] / "shared/data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(("max_length", "share"), [(512, 0.99), (160, 0.9)])
def test_labels_of_real_questions_lead_back_to_their_answers(max_length: int, share: float) -> None:
    asked = readers.read_spans(SHARED / "tasks/cmrc2018/trial.json")[:250]
    with tokenizer_files.folder_of(SHARED / "vocab.txt") as folder:
        vocabulary = tokenizer_files.load(folder)
    features = encode(asked, vocabulary, TaskConfig(name="cmrc2018"), max_length)
    answered, exact = set(), 0
    for feature in features:
        if feature.labels == (0, 0):
            continue
        first, last = (place - feature.second for place in feature.labels)
        one = asked[feature.example]
        found = one.context[feature.origin.starts[first] : feature.origin.ends[last]]
        # Tokens are whole: of a number or a word of Latin letters, an answer may be a part.
        assert any(answer.text.strip() in found for answer in one.answers)
        exact += any(answer.text.strip() == found for answer in one.answers)
        answered.add(feature.example)
    # In short rows the longest answers stand whole in no window.
    assert len(answered) >= share * len(asked)
    assert exact >= 0.95 * sum(feature.labels != (0, 0) for feature in features)
