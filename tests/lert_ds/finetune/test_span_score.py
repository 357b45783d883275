import re
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.errors import UserError
from lert_ds.finetune import span_score

nltk_tokenize = pytest.importorskip("nltk.tokenize", reason="needs nltk: pip install nltk")

# The rules of CMRC 2018's script in its own order: cut with marks kept as pieces or left out, a
# whole table of common stretches, the best of the answers.
MARKS = [
    "-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "=", "，", "。", "：", "？", "！", "“", "”",
    "；", "’", "《", "》", "……", "·", "、", "「", "」", "（", "）", "－", "～", "『", "』",
]  # fmt: skip
answer_text = st.text("天气很好今阿z Ab1.'，。？…—·-~\t", max_size=12)


def official_segments(text: str) -> list[str]:
    pieces: list[str] = []
    buffer = ""
    words = nltk_tokenize.NLTKWordTokenizer()
    for sign in text.lower().strip():
        if sign in MARKS:
            continue
        if re.search("[\u4e00-\u9fa5]", sign):
            if buffer != "":
                pieces.extend(words.tokenize(buffer))
                buffer = ""
            pieces.append(sign)
        else:
            buffer += sign
    if buffer != "":
        pieces.extend(words.tokenize(buffer))
    return pieces


def official_common(one: Sequence[str], other: Sequence[str]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    longest = 0
    for i in range(len(one)):
        for j in range(len(other)):
            if one[i] == other[j]:
                table[i + 1][j + 1] = table[i][j] + 1
                longest = max(longest, table[i + 1][j + 1])
    return longest


def official_f1(answers: Sequence[str], prediction: str) -> float:
    scores = []
    for answer in answers:
        wanted, found = official_segments(answer), official_segments(prediction)
        common = official_common(wanted, found)
        if common == 0:
            scores.append(0.0)
            continue
        precision, recall = common / len(found), common / len(wanted)
        scores.append(2 * precision * recall / (precision + recall))
    return max(scores)


def official_em(answers: Sequence[str], prediction: str) -> int:
    def remove(text: str) -> str:
        return "".join(sign for sign in text.lower().strip() if sign not in MARKS)

    return int(any(remove(answer) == remove(prediction) for answer in answers))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(answer_text, min_size=1, max_size=3), answer_text),
        min_size=1,
        max_size=4,
    )
)
def test_scores_are_those_of_the_official_rules(asked: list[tuple[list[str], str]]) -> None:
    truths, given_answers = zip(*asked, strict=True)
    em = sum(official_em(*one) for one in asked) / len(asked)
    f1 = sum(official_f1(*one) for one in asked) / len(asked)
    found = span_score.score(truths, given_answers)
    assert found == pytest.approx({"em": em, "f1": f1, "average": (em + f1) / 2})


@pytest.mark.parametrize(
    ("answers", "given_answer", "em", "f1"),
    [
        (["北京"], "北京", 1, 1.0),
        (["北京"], "“北京”。", 1, 1.0),  # marks do not count
        (["北京大学"], "北京", 0, 2 * 2 / 6),
        (["《Deep Learning》"], "deep learning", 1, 1.0),  # nor do capitals
        (["deep learning 书"], "learning 书", 0, 2 * 2 / 5),  # words of letters, not letters
        (["北大京"], "北京", 0, 2 * 1 / 5),  # one stretch, not a subsequence
        (["上海", "北京市"], "北京", 0, 2 * 2 / 5),  # the best of several
        (["1998年"], "1998", 0, 2 * 1 / 3),
        (["北京"], "", 0, 0.0),
        (["。"], "", 1, 0.0),  # equal, but nothing in common: so does the script have it
    ],
)
def test_worked_examples(answers: list[str], given_answer: str, em: int, f1: float) -> None:
    found = span_score.score([answers], [given_answer])
    assert (found["em"], found["f1"]) == pytest.approx((em, f1))
    assert span_score.is_exact(answers, given_answer) == bool(em)


@settings(deadline=None)
@given(st.lists(answer_text, min_size=1, max_size=3))
def test_an_answer_that_is_a_truth_is_exact(answers: list[str]) -> None:
    found = span_score.score([answers], [answers[-1]])
    assert found["em"] == 1
    assert found["f1"] == (
        1 if official_segments(answers[-1]) else official_f1(answers, answers[-1])
    )


def test_no_questions_are_no_division_by_zero() -> None:
    assert span_score.score([], []) == {"em": 0.0, "f1": 0.0, "average": 0.0}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(UserError, match=r"needs nltk.*pip install nltk"):
        span_score.score([["a"]], ["a"])
