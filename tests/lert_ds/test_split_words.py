"""Text to words, however it is asked for."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.corpus import annotate
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import locate_words
from lert_ds.errors import UserError
from lert_ds.split_words import Splitter, make_splitter

TEXTS = ["今天天气很好。他来北京。", "3月 GDP增长", "", " \n", "他说：“走吧。”然后走了3.5公里。"]


def test_by_what_stands_in_the_text() -> None:
    spaced, plain = make_splitter("space"), make_splitter("character")
    assert spaced(["今天 天气  很好", "\u3000好"])[0].words == ["今天", "天气", "很好"]
    assert spaced(["今天 天气  很好", "\u3000好"])[1].words == ["好"]
    assert plain(["3月 GDP增长。"])[0].words == ["3", "月", "GDP", "增", "长", "。"]


def test_jieba_is_that_of_prepare_over_all_sentences_of_a_text() -> None:
    found = make_splitter("jieba")(TEXTS)
    assert [words.text for words in found] == TEXTS
    assert found[0].words == ["今天天气", "很", "好", "。", "他", "来", "北京", "。"]
    assert found[1].words == ["3", "月", "GDP", "增长"]
    assert found[2].words == found[3].words == []


@pytest.fixture(scope="module", params=["jieba", "space", "character"])
def splitter(request: pytest.FixtureRequest) -> Splitter:
    return make_splitter(request.param)  # jieba's dictionary takes a second


@given(texts=st.lists(st.text("今天天气很好。\n\u3000 aB1é！，\u200b", max_size=30), max_size=4))
def test_words_stand_in_their_text(splitter: Splitter, texts: list[str]) -> None:
    for text, found in zip(texts, splitter(texts), strict=True):
        assert found.text == text
        assert locate_words(text, found.words) is not None


def test_ltp_is_asked_with_the_model_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ltp:
        def sentences(self, text: str) -> list[str]:
            return [part for part in text.split("。") if part]

        def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
            for document, text in list(sentences):
                yield AnnotatedSentence(text, list(text), doc=document)

    asked = []

    def make(config: Any, _: Any) -> Ltp:
        asked.append((config.kind, config.model))
        return Ltp()

    monkeypatch.setattr(annotate, "make_annotator", make)
    found = make_splitter("ltp:some/folder")(["今天", "", "明天。再见"])
    assert [words.words for words in found] == [["今", "天"], [], ["明", "天", "再", "见"]]
    make_splitter("ltp")
    assert asked == [("ltp", "some/folder"), ("ltp", "LTP/small")]


@pytest.mark.parametrize("name", ["", "Jieba", "ltp:", "jieba:x", "words"])
def test_an_unknown_way_is_told_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match="there is no such way to split text; say jieba, ltp"):
        make_splitter(name)


@pytest.mark.parametrize("library", ["jieba", "orjson", "pydantic"])
def test_without_the_library_the_ways_without_it_are_named(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith("lert_ds.corpus.a") or name == "lert_ds.corpus.sentence":
            monkeypatch.delitem(sys.modules, name)
        if name.startswith("lert_ds.config"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"--words jieba: {library} is not installed.*space"):
        make_splitter("jieba")


def test_a_model_of_ltp_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        make_splitter(f"ltp:{tmp_path / 'none'}")
