"""Words meet pieces: a table worked out by hand, and what must hold for any words and text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.corpus.align import Aligner
from lert_ds.corpus.encode import Encoder
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.vocabulary import Vocabulary, load_tokenizer
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS

POS = {tag: number for number, tag in enumerate(LTP_TAGS["pos"])}


def pos_of(words: str) -> list[str | None]:
    """Return tags by rotation, so that a neighbour's tag shows."""
    return [("n", "v", "wp", "m", "ws")[place % 5] for place in range(len(words.split("|")))]


# text, words, pieces ("|" before a piece that opens a word), pieces without tags
TABLE = [
    ("我爱北京", "我|爱|北京", "|我 |爱 |北 京", ""),
    ("北京天安门。", "北京|天安门|。", "|北 京 |天 安 门 |。", ""),
    ("我爱GitHub。", "我|爱|GitHub|。", "|我 |爱 |git ##hub |。", ""),
    ("hello北京", "hello|北京", "|hello |北 京", ""),
    ("2023年", "2023|年", "|2023 |[UNK]", ""),  # rare Han is [UNK] and keeps its word
    ("在2023年", "在|2023年", "|在 |2023 [UNK]", ""),
    ("3.14", "3.14", "|3 . 1 ##4", ""),  # several pre-tokens in one word
    ("今天 天气", "今天|天气", "|今 天 |天 气", ""),  # white space lies between words
    ("今天　天气", "今天|天气", "|今 天 |天 气", ""),  # of any width
    ("a b", "a b", "|a b", ""),  # white space inside a word
    ("don't", "do|n't", "|don ' t", "don"),  # a piece that spans two words
    ("don'tan", "do|n't|an", "|don ' [UNK]", "don [UNK]"),  # two of them in a row
    ("cafe", "ca|fe", "|cafe", "cafe"),
    ("Café好", "Café|好", "|cafe |好", ""),  # an accent stripped
    ("Ａb好", "Ａb|好", "|[UNK] |好", ""),  # full width stays full width
    ("ａｂ我", "ａｂ|我", "|ａ ##ｂ |我", ""),
    ("我😀爱", "我|😀|爱", "|我 |[UNK] |爱", ""),
    ("我\u200b爱", "我|\u200b|爱", "|我 |爱", ""),  # a word that normalisation removes
    ("𠮷水", "𠮷|水", "|[UNK] |水", ""),
    ("他说：“好！”", "他|说|：|“|好|！|”", "|他 |说 |： |“ |好 |！ |”", ""),
    ("我-爱", "我|-|爱", "|我 |- |爱", ""),
    ("我爱北京", "我|北京", "|我 |爱 |北 京", "爱"),  # a character that no word has
    ("我爱北京", "我|恨|北京", "|我 |爱 |北 京", "爱"),  # a word that the text has not
    ("我爱北京", "京", "|我 |爱 |北 |京", "我 爱 北"),  # what has no word makes none
    ("一二三", "一|三", "|一 |二 |三", "二"),
]


@pytest.mark.parametrize(("text", "words", "pieces", "untagged"), TABLE)
def test_by_hand(
    text: str, words: str, pieces: str, untagged: str, module_vocabulary: Vocabulary
) -> None:
    vocabulary = module_vocabulary
    listed = words.split("|")
    pos = pos_of(words)
    aligner = Aligner(Encoder(vocabulary.tokenizer), LTP_TAGS)
    tokens, ends = aligner.align([AnnotatedSentence(text, listed, pos)])
    expected = pieces.split()
    shown = [
        ("|" if opens else "") + vocabulary.pieces[token]
        for token, opens in zip(tokens.ids, tokens.word_starts, strict=True)
    ]
    assert shown == expected
    assert ends.tolist() == [len(expected)]
    without = [
        vocabulary.pieces[token]
        for token, found in zip(tokens.ids, tokens.tags["pos"], strict=True)
        if found == IGNORE_INDEX
    ]
    assert without == untagged.split()
    assert set(tokens.tags["ner"].tolist()) == {IGNORE_INDEX}


@pytest.fixture(scope="module")
def module_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("v") / "vocab.txt"
    pieces = [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *"我爱北京天安门。！今气好在一二三他说：“”水-.'",
        *("git", "##hub", "hello", "don", "2023", "cafe", "ａ", "##ｂ", "a", "b", "t"),
        *("1", "3", "##4"),
    ]
    path.write_text("\n".join(pieces), "utf-8")
    return load_tokenizer(str(path))


def test_tags_follow_their_words_and_unknown_ones_are_counted(
    module_vocabulary: Vocabulary,
) -> None:
    sentences = [
        AnnotatedSentence("我爱北京", ["我", "爱", "北京"], ["r", "v", "ns"], ["O", "O", "S-Ns"]),
        AnnotatedSentence("今天好", ["今天", "好"], ["nt", None], None, ["ADV", "NEW"]),
    ]
    aligner = Aligner(Encoder(module_vocabulary.tokenizer), LTP_TAGS)
    tokens, ends = aligner.align(sentences)
    assert ends.tolist() == [4, 7]
    expected = [POS["r"], POS["v"], POS["ns"], POS["ns"], POS["nt"], POS["nt"], IGNORE_INDEX]
    assert tokens.tags["pos"].tolist() == expected
    assert tokens.tags["ner"].tolist() == [0, 0, 1, 1, 255, 255, 255]
    assert tokens.tags["dep"].tolist() == [255] * 4 + [2, 2, 255]
    assert aligner.counts == {
        "pos: word without a tag": 1,
        "ner: sentence without tags (words)": 2,
        "dep: sentence without tags (words)": 3,
        "dep: tag 'NEW' is not in the tag set": 1,
    }


def test_what_does_not_meet_is_counted_by_reason(module_vocabulary: Vocabulary) -> None:
    aligner = Aligner(Encoder(module_vocabulary.tokenizer), {"pos": ["n"], "ner": [], "dep": []})
    for text, words in (("don't", "do|n't"), ("我爱", "我"), ("我\u200b", "我|\u200b")):
        listed = words.split("|")
        aligner.align([AnnotatedSentence(text, listed, ["n"] * len(listed))])
    aligner.align([AnnotatedSentence("我好", ["我", "坏"], ["n", "n"])])
    found = {k: v for k, v in aligner.counts.items() if not k.startswith(("ner", "dep"))}
    assert found == {
        "token spans several words": 1,
        "token outside words": 2,
        "word without a token": 2,
        "word not found in its sentence": 1,
    }


def test_one_lost_word_does_not_derail_the_rest(module_vocabulary: Vocabulary) -> None:
    text = "我爱" + "天" * 40 + "我好"
    words = ["我", "恨", *"天" * 40, "我", "好"]
    aligner = Aligner(Encoder(module_vocabulary.tokenizer), LTP_TAGS)
    tokens, _ = aligner.align([AnnotatedSentence(text, words, ["n"] * len(words))])
    assert (tokens.tags["pos"] == IGNORE_INDEX).nonzero()[0].tolist() == [1]


PARTS = st.lists(
    st.tuples(
        st.text(alphabet="我爱北京。3a1\u200b😀hub-Ａé", min_size=1, max_size=4),
        st.sampled_from(["", "", " ", "　", "\t "]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(sentences=st.lists(PARTS, min_size=1, max_size=4))
def test_properties(module_vocabulary: Vocabulary, sentences: list[list[tuple[str, str]]]) -> None:
    encoder = Encoder(module_vocabulary.tokenizer)
    aligner = Aligner(encoder, LTP_TAGS)
    annotated = []
    for parts in sentences:
        words = [word for word, _ in parts]
        text = "".join(word + space for word, space in parts)
        annotated.append(AnnotatedSentence(text, words, pos_of("|".join(words))))
    tokens, ends = aligner.align(annotated)
    # Together they are what each is alone: a batch changes nothing.
    alone = [Aligner(encoder, LTP_TAGS).align([sentence])[0] for sentence in annotated]
    assert np.diff(ends, prepend=0).tolist() == [len(part.ids) for part in alone]
    assert tokens.ids.tolist() == [int(i) for part in alone for i in part.ids]
    assert tokens.word_starts.tolist() == [bool(i) for part in alone for i in part.word_starts]
    # Every token is there, in order, and the first of a sentence opens a word.
    for sentence, part in zip(annotated, alone, strict=True):
        assert part.ids.tolist() == encoder.encode(sentence.text).ids.tolist()
        if len(part.ids):
            assert part.word_starts[0]
        # A token within a single word has its tag; the words were all found.
        bounds = []
        place = 0
        for word in sentence.words:
            start = sentence.text.index(word, place)
            place = start + len(word)
            bounds.append((start, place))
        _, starts, stops = encoder.encode(sentence.text)
        assert sentence.pos is not None
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            inside = [k for k, (a, b) in enumerate(bounds) if a <= start and stop <= b]
            tag = part.tags["pos"][number]
            expected = POS[str(sentence.pos[inside[0]])] if inside else IGNORE_INDEX
            assert tag == expected
    assert "word not found in its sentence" not in aligner.counts
