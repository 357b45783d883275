"""The JSON line of an annotated sentence: there and back, and what is none."""

import pytest

from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.errors import CorpusError


def test_there_and_back() -> None:
    words = ["我", "爱", "。"]
    sentence = AnnotatedSentence("我 爱。", words, ["r", None, "wp"], None, None, 2**52)
    line = sentence.to_json()
    assert b"\n" not in line
    assert AnnotatedSentence.from_json(line, "x") == sentence


def test_what_may_be_absent() -> None:
    found = AnnotatedSentence.from_json('{"words": ["我", "爱"]}', "x")
    assert found == AnnotatedSentence("我爱", ["我", "爱"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:3: not an annotated sentence"),
        ("[]", "a.jsonl:3: not an annotated sentence"),
        ('{"text": "x"}', "a.jsonl:3: not an annotated sentence .*words"),
        ('{"words": ["a"], "doc": "x"}', "a.jsonl:3: not an annotated sentence"),
        ('{"words": ["a"], "pos": ["n", "v"]}', "a.jsonl:3: 1 words but 2 pos tags"),
    ],
)
def test_what_is_none(line: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        AnnotatedSentence.from_json(line, "a.jsonl:3")
