import random
import time
from pathlib import Path

import jieba
import jieba.posseg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.corpus.annotators.jieba_annotator import LONGEST_UNKNOWN_RUN, Cutter, JiebaAnnotator
from lert_ds.corpus.text import is_blank, locate_words
from lert_ds.errors import ConfigError
from lert_ds.labels import LTP_TAGS

WIKI = Path(__file__).parents[4] / "../shared/data/text/wiki_train.txt"
SAMPLE = Path(__file__).parents[4] / "lert_ds/samples/prose.txt"


@pytest.fixture(scope="module")
def annotator() -> JiebaAnnotator:
    return JiebaAnnotator()


@pytest.fixture(scope="module")
def jiebas_own() -> jieba.posseg.POSTokenizer:
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return jieba.posseg.POSTokenizer(tokenizer)


def test_a_sentence_gets_words_and_tags(annotator: JiebaAnnotator) -> None:
    (sentence,) = annotator.annotate([(7, " 李明 在北京工作。\n")])
    assert sentence.text == " 李明 在北京工作。\n"
    assert sentence.words == ["李明", "在", "北京", "工作", "。"]
    assert sentence.pos == ["nh", "p", "ns", "v", "wp"]
    assert sentence.ner == ["S-Nh", "O", "S-Ns", "O", "O"]
    assert sentence.dep is None
    assert sentence.doc == 7


@pytest.mark.parametrize("path", [SAMPLE, WIKI], ids=["sample", "wiki"])
def test_words_are_jiebas_own(
    path: Path, annotator: JiebaAnnotator, jiebas_own: jieba.posseg.POSTokenizer
) -> None:
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    compared = 0
    for sentence in annotator.sentences(path.read_text("utf-8")[:12_000]):
        # Where characters are outside jieba's tables we part from it, on purpose.
        if any(
            ord(c) > 0x7F and c.isalnum() and not annotator._cutter._model.knows(c)
            for c in sentence
        ):
            continue
        expected = [(pair.word, pair.flag) for pair in jiebas_own.lcut(sentence)]
        assert annotator._cutter.cut(sentence) == expected
        compared += 1
    assert compared > 100


@given(
    st.text(
        st.one_of(st.sampled_from("中国人民解放军ab1 .+#&_é한\u0301\u200d\n，"), st.characters())
    )
)
def test_words_stand_in_the_text(annotator: JiebaAnnotator, text: str) -> None:
    assert "".join(word for word, _ in annotator._cutter.cut(text)) == text
    (sentence,) = annotator.annotate([(0, text)])
    assert locate_words(text, sentence.words) is not None
    assert sentence.pos is not None
    assert sentence.ner is not None
    assert len(sentence.words) == len(sentence.pos) == len(sentence.ner)
    assert set(sentence.pos) <= set(LTP_TAGS["pos"])
    assert not any(is_blank(word) for word in sentence.words)


def test_words_of_other_scripts_stay_whole(annotator: JiebaAnnotator) -> None:
    (sentence,) = annotator.annotate([(0, "我在café看Pokémon和タワー，２０２３年한국어")])
    for word, pos in (("café", "ws"), ("Pokémon", "ws"), ("タワー", "ws"), ("２０２３", "m")):
        assert sentence.pos is not None
        assert sentence.pos[sentence.words.index(word)] == pos
    assert "한국어" in sentence.words


def test_long_runs_of_rare_characters_do_not_stall(annotator: JiebaAnnotator) -> None:
    generator = random.Random(0)
    known = sorted(jieba.posseg.char_state_tab_P)
    mixed = "".join(generator.choices(known, k=10_000))
    rare = "".join(chr(generator.randrange(0x4E00, 0x9FD5)) for _ in range(10_000))
    begin = time.process_time()
    for text in (mixed, rare, "龘" * 10_000):
        words = annotator._cutter.cut(text)
        assert "".join(word for word, _ in words) == text
    assert time.process_time() - begin < 5  # jieba's own takes half a minute


def test_a_run_too_long_for_a_name_falls_into_characters(annotator: JiebaAnnotator) -> None:
    run = "淼" * LONGEST_UNKNOWN_RUN
    assert len(annotator._cutter.cut(run)) < len(run)
    assert [word for word, _ in annotator._cutter.cut(run + "淼")] == [*run, "淼"]
    assert [word for word, _ in annotator._cutter.cut("龘龘")] == ["龘", "龘"]


def test_the_users_words_are_found(annotator: JiebaAnnotator, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("韶光溪谷 1000 ns\n量子纠缠态\n", "utf-8")
    knowing = JiebaAnnotator(user_dictionary=path)
    (sentence,) = knowing.annotate([(0, "韶光溪谷有量子纠缠态")])
    assert sentence.words == ["韶光溪谷", "有", "量子纠缠态"]
    assert sentence.ner == ["S-Ns", "O", "O"]
    assert annotator._cutter.cut("韶光溪谷")[0][0] != "韶光溪谷"  # and are nobody else's


def test_a_dictionary_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"user_dictionary = .*words\.txt: No such file"):
        Cutter(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"user_dictionary = .*words\.txt.*UTF-8"):
        Cutter(tmp_path / "words.txt")
