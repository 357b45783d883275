import sys
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lert_ds.corpus.text import (
    has_blank,
    is_blank,
    locate_words,
    plain_words,
    split_sentences,
    trim_blank,
)

MARKS = "。！？；…!?;.,，、：:\"'”’」』）)】 \n\r\t\u2028\u3000"
ALPHABET = st.one_of(
    st.sampled_from(MARKS + "中文字Aab1239éÅ한글\u0301\u200d\u200b\ufe0f👍🏽🇨🇳👨"),
    st.characters(),  # lone surrogates too
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("他来了。我走了！好吗？", ["他来了。", "我走了！", "好吗？"]),
        ("一；二……三｡四", ["一；", "二……", "三｡", "四"]),
        ("真的？！（是的。）“走吧。”他说。", ["真的？！", "（是的。）", "“走吧。”", "他说。"]),
        ("第一行\n第二行\r\n\n  第三行", ["第一行\n", "第二行\r\n\n  ", "第三行"]),
        ("标题\n“引文。”", ["标题\n", "“引文。”"]),
        # Latin marks
        (
            "It ended. He left! Why? (So.) Yes",
            ["It ended. ", "He left! ", "Why? ", "(So.) ", "Yes"],
        ),
        ("圆周率是3.14，约1,000.5元.然后", ["圆周率是3.14，约1,000.5元.", "然后"]),
        (
            "The U.S. Army, e.g. Dr. Smith et al. came.",
            ["The U.S. Army, e.g. Dr. Smith et al. came."],
        ),
        ("J.K.罗琳写了书。", ["J.K.罗琳写了书。"]),
        (
            "见 https://a.cn/b.html?c=1;d=2!e#f 和 x.y.zip。",
            ["见 https://a.cn/b.html?c=1;d=2!e#f 和 x.y.zip。"],
        ),
        ("用Node.js和.NET。", ["用Node.js和.NET。"]),
        ("1. 引言\n2. 方法", ["1. 引言\n", "2. 方法"]),
        ("Wait... what?", ["Wait... ", "what?"]),
        # A straight quote closes one that is open, and opens the next sentence otherwise.
        ('他说:"走!"然后走了。"好。"她说。', ['他说:"走!"', "然后走了。", '"好。"', "她说。"]),
        ('"一。二。"三。\n"四。"', ['"一。', '二。"', "三。\n", '"四。"']),
        ("", []),
        (" \n ", [" \n "]),
    ],
)
def test_sentences_end_where_readers_end_them(text: str, sentences: list[str]) -> None:
    assert split_sentences(text, 510) == sentences


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("一二三四，五六七八，九十", 10, ["一二三四，五六七八，", "九十"]),
        ("“一二三四五，”六七八九十", 10, ["“一二三四五，”", "六七八九十"]),
        ("one two three four", 10, ["one two ", "three four"]),
        ("一二三四五 六七八九十", 8, ["一二三四五 ", "六七八九十"]),
        ("一二三四，\u0301六七八", 6, ["一二三四，\u0301", "六七八"]),
        ("一，二三四五六七八九十", 9, ["一，二三四五六七八", "九十"]),  # no stumps
        ("一二三四五六七八九十", 4, ["一二三四", "五六七八", "九十"]),
        ("一二三四iPhone一二", 7, ["一二三四", "iPhone一", "二"]),
        ("一二三1,234.5一二三", 8, ["一二三", "1,234.5一", "二三"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("一二三e\u0301四", 4, ["一二三", "e\u0301四"]),
        ("一二👨\u200d👩四", 4, ["一二", "👨\u200d👩四"]),
        ("一二👍🏽四", 3, ["一二", "👍🏽四"]),
        ("\u0301" * 5, 2, ["\u0301\u0301", "\u0301\u0301", "\u0301"]),
    ],
)
def test_a_long_sentence_is_cut_at_its_best_mark(text: str, limit: int, pieces: list[str]) -> None:
    assert split_sentences(text, limit) == pieces


@given(st.text(ALPHABET, max_size=200), st.integers(1, 30))
@example("\ud83d\ude00" * 3, 3)
@example('。"', 1)
def test_pieces_join_back_and_none_is_longer_than_the_limit(text: str, limit: int) -> None:
    pieces = split_sentences(text, limit)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)


@given(st.text(ALPHABET, max_size=60))
@example("\x0c\u0300")
def test_no_cut_falls_into_a_surrogate_pair_or_combining_sequence(text: str) -> None:
    text = "字" + text.replace("\n", "")
    for piece in split_sentences(text, 70)[1:]:
        before = text[: text.find(piece)][-1:]
        # A mark combines with no white space, a form feed say, where a line ends.
        combines = unicodedata.category(piece[0])[0] == "M" and not before.isspace()
        assert not combines or before in MARKS
    for piece in split_sentences("e\u0301" * 20, 7):
        assert piece[0] == "e"


@pytest.mark.parametrize(
    "unit", ["a", "。", "!a", ".", '。"', "，", " ", "\u0301", "中", "a.", "\n", "一，" + "b" * 600]
)
def test_a_long_line_takes_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    begin = time.process_time()
    pieces = split_sentences(text, 510)
    assert time.process_time() - begin < 10  # quadratic time would be many minutes
    assert sum(map(len, pieces)) == len(text)
    assert max(map(len, pieces)) <= 510


def test_blank_is_white_space_control_and_format_characters() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cn":  # newer versions of Unicode may have given it a meaning
            continue
        expected = character.isspace() or category in ("Cc", "Cf")
        assert is_blank(character) == expected, hex(code)
    assert is_blank("")
    assert not is_blank(" a ")


def test_trimming_leaves_inner_blanks() -> None:
    assert trim_blank("x \u200ba b\u3000y", 1, 7) == (3, 6)
    assert trim_blank("  ", 0, 2) == (2, 2)


@pytest.mark.parametrize(
    ("text", "words", "spans"),
    [
        ("你好 世界", ["你好", "世界"], [(0, 2), (3, 5)]),
        (" \u200b你好\n", ["你", "好"], [(2, 3), (3, 4)]),
        ("a a b", ["a", "a", "b"], [(0, 1), (2, 3), (4, 5)]),
        ("New York", ["New York"], [(0, 8)]),
        ("", [], []),
        ("你好世界", ["你好"], None),
        ("你好世界", ["世界", "你好"], None),
        ("你x好", ["你", "好"], None),
        ("你好", ["你", "", "好"], None),
        ("你", ["你", "你"], None),
    ],
)
def test_words_are_located_in_order(
    text: str, words: list[str], spans: list[tuple[int, int]] | None
) -> None:
    assert locate_words(text, words) == spans


def test_plain_words_are_characters_and_runs_of_letters() -> None:
    assert plain_words("我爱GitHub 2023，é𠀀ok\u200b!?") == [
        *("我", "爱", "GitHub", "2023", "，", "é", "𠀀", "ok", "!", "?")
    ]


@given(st.text(ALPHABET, max_size=80))
def test_plain_words_leave_only_blanks_out(text: str) -> None:
    assert locate_words(text, plain_words(text)) is not None


@given(st.lists(st.text(st.sampled_from("a中\n \u200b\u3000\x1f"), max_size=3)))
def test_a_blank_word_is_found_among_others(words: list[str]) -> None:
    assert has_blank(words) == any(map(is_blank, words))
