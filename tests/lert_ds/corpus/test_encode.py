"""The encoder must give what the tokenizer gives, to the id and the offset."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lert_ds.corpus.encode import Encoder
from lert_ds.corpus.vocabulary import Vocabulary, load_tokenizer

SHARED = Path(__file__).parents[3] / "../shared/data"

ODD = (
    "你北京，。！、“”—…·《》 \t\n\r　aB1zé\u0301\u0300\u200b\u200d\ufeff\u00adİΣßＡｂ１Ⅳ½①㎡"
    "ｶﾞ가힣々〇𠮷😀👨‍👩‍👧🇨🇳'\"%#@[]-_\u0085\u2028\x00\x7f\ufffd"
)


def reference(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def check(vocabulary: Vocabulary, encoder: Encoder, text: str) -> None:
    found = encoder.encode(text)
    offsets = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    assert (found.ids.tolist(), offsets) == reference(vocabulary.tokenizer, text)


@pytest.fixture(scope="module")
def module_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("v") / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你北京，。a1e'[]", "##b", "##1", "é"]
    path.write_text("\n".join([*pieces, "ab", "ａ", "mask"]), "utf-8")
    return load_tokenizer(str(path))


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.one_of(st.sampled_from(ODD), st.characters(codec="utf-8"))))
def test_any_text_encodes_as_the_tokenizer_does(module_vocabulary: Vocabulary, text: str) -> None:
    check(module_vocabulary, Encoder(module_vocabulary.tokenizer), text)


def test_a_vocabulary_without_the_probe_letter(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n你\nb\n##b\n。\n", "utf-8")
    vocabulary = load_tokenizer(str(path))
    for text in ("你b。a", "ab你bb\u200bb", "b你ba 。"):
        check(vocabulary, Encoder(vocabulary.tokenizer), text)


def test_letters_that_stand_alone_as_pieces_are_still_joined(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n##b\n你\n", "utf-8")
    vocabulary = load_tokenizer(str(path))
    for text in ("ab", "你ba你", "abab b a"):
        check(vocabulary, Encoder(vocabulary.tokenizer), text)


def test_special_tokens_in_text_are_text(vocabulary: Vocabulary) -> None:
    found = Encoder(vocabulary.tokenizer).encode("[MASK]我[PAD]")
    assert not {0, 2, 3, 4} & set(found.ids.tolist())
    assert found.ids.tolist()[0] == vocabulary.pieces.index("[")


def test_real_text_and_vocabulary() -> None:
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the checkout")
    vocabulary = load_tokenizer(str(SHARED / "vocab.txt"))
    text = (SHARED / "text/wiki_valid.txt").read_text("utf-8")[:40_000]
    check(vocabulary, Encoder(vocabulary.tokenizer), text)
