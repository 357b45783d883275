"""jieba's word flags (ICTCLAS) to LTP's part of speech and named entity tags.

jieba's and LTP's letters clash: jieba's `nt` is an organisation (LTP `ni`), `t` a time (`nt`),
`nr` a person (`nh`), `s` a place noun (`nl`), `f` a direction (`nd`). No gold data scored this
table: it is a reading of the two tag lists, good enough to start with, not a replacement of LTP.
"""

import re
import unicodedata

_POS_OF_FLAG = {
    **dict.fromkeys(("n", "ng", "g"), "n"),
    **dict.fromkeys(("nr", "nrfg", "nrt"), "nh"),
    **{"ns": "ns", "nt": "ni", "nz": "nz", "s": "nl", "f": "nd", "t": "nt", "tg": "nt"},
    **dict.fromkeys(("v", "vd", "vg", "vi", "vn", "vq"), "v"),
    **dict.fromkeys(("a", "ad", "an", "ag"), "a"),
    **dict.fromkeys(("d", "dg", "df"), "d"),
    **dict.fromkeys(("m", "mg", "mq"), "m"),
    **dict.fromkeys(("q", "qe", "qg"), "q"),
    **dict.fromkeys(("r", "rr", "rz", "rg"), "r"),
    **dict.fromkeys(("u", "ud", "ug", "uj", "ul", "uv", "uz", "y", "yg"), "u"),
    **dict.fromkeys(("b", "bg"), "b"),
    **dict.fromkeys(("i", "in", "l", "ln"), "i"),  # l, a set phrase, is closest to an idiom
    **dict.fromkeys(("e", "en"), "e"),
    **dict.fromkeys(("j", "jn"), "j"),
    **{"c": "c", "p": "p", "o": "o", "h": "h", "k": "k", "z": "z", "zg": "n", "w": "wp"},
}
"""Every flag of jieba's dictionary and of its hidden Markov model, but `eng` and `x`."""

_POS_OF_CHARACTER = {
    character: pos
    for pos, characters in {
        "d": "很较仍反甚且稍够",
        "r": "此每您",
        "nt": "今",
        "v": "行穿曰掉选奔响升丢护失寻呼止挡抵搜抛患罚休盗叹刷",
        "p": "往",
        "c": "虽",
        "u": "啊矣",
        "e": "哦唉",
        "q": "块件轮组年月日",
        "nh": "刘孙",
        "a": "毒异狂凶",
    }.items()
    for character in characters
}
"""Common characters that jieba flags `zg` (its bin of single characters) or `m` (年, 月, 日)."""

_NER_OF_FLAG = {"nr": "S-Nh", "nrfg": "S-Nh", "nrt": "S-Nh", "ns": "S-Ns", "nt": "S-Ni"}

_NUMBER = re.compile(r"[0-9０-９]+(?:[.,．:：/][0-9０-９]+)*[%％‰]?")
_HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")


def ltp_pos(word: str, flag: str) -> str:
    """Return the LTP part of speech of a word that jieba flags `flag`.

    A flag that jieba does not know (a user's own) counts as the class its first letter names.
    """
    if flag in ("zg", "m") and word in _POS_OF_CHARACTER:
        return _POS_OF_CHARACTER[word]
    if flag not in ("eng", "x"):
        pos = _POS_OF_FLAG.get(flag) or _POS_OF_FLAG.get(flag[:1])
        if pos is not None:
            return pos
    return _pos_by_characters(word)


def ltp_ner(flag: str) -> str:
    """Return the LTP entity tag of a word that jieba flags `flag`: one word is one entity."""
    return _NER_OF_FLAG.get(flag, "O")


def _pos_by_characters(word: str) -> str:
    if _NUMBER.fullmatch(word):
        return "m"
    if _HAN.fullmatch(word):
        return "n"
    if any(unicodedata.category(character)[0] in "LN" for character in word):
        return "ws"  # foreign
    return "wp"  # punctuation, symbols, emoji
