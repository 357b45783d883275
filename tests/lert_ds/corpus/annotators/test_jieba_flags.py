import jieba.posseg
import pytest

from lert_ds.corpus.annotators.jieba_flags import ltp_ner, ltp_pos
from lert_ds.labels import LTP_TAGS


@pytest.mark.parametrize(
    ("word", "flag", "pos", "ner"),
    [
        ("李明", "nr", "nh", "S-Nh"),
        ("爱因斯坦", "nrt", "nh", "S-Nh"),
        ("北京", "ns", "ns", "S-Ns"),
        ("联合国", "nt", "ni", "S-Ni"),  # jieba's nt is an organisation, LTP's a time
        ("昨天", "t", "nt", "O"),
        ("里面", "f", "nd", "O"),
        ("家里", "s", "nl", "O"),
        ("的", "uj", "u", "O"),
        ("吗", "y", "u", "O"),
        ("很", "zg", "d", "O"),
        ("年", "m", "q", "O"),
        ("三", "m", "m", "O"),
        ("2023", "eng", "m", "O"),
        ("3.14%", "x", "m", "O"),
        ("GitHub", "eng", "ws", "O"),
        ("，", "x", "wp", "O"),
        ("👍", "x", "wp", "O"),
        ("𠀀", "x", "n", "O"),
        ("한국어", "x", "ws", "O"),
        ("云计算", "nw", "n", "O"),  # a flag of the user's own
    ],
)
def test_flags_become_ltp_tags(word: str, flag: str, pos: str, ner: str) -> None:
    assert ltp_pos(word, flag) == pos
    assert ltp_ner(flag) == ner


def test_every_flag_that_jieba_has_becomes_a_tag_of_ltp() -> None:
    with jieba.get_module_res("dict.txt") as file:
        entries = [line.decode("utf-8").split() for line in file]
    flags = {(word, flag) for word, _, flag in entries}
    flags |= {("字", flag) for _, flag in jieba.posseg.trans_P}
    assert len(flags) > 300_000
    assert {ltp_pos(word, flag) for word, flag in flags} <= set(LTP_TAGS["pos"])
    assert {ltp_ner(flag) for _, flag in flags} <= set(LTP_TAGS["ner"])
