"""Tokenizers from everywhere, learnt ones, and the files that transformers loads."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lert_ds.corpus.vocabulary import (
    Vocabulary,
    count_pieces,
    learn_vocabulary,
    load_tokenizer,
    save_tokenizer,
)
from lert_ds.errors import CorpusError, ModelError
from lert_ds.files import sha256_of

SHARED = Path(__file__).parents[3] / "../shared/data"
MIXED = "Hello 世界，２０２３年 Café don't 𠮷野家 😀 [x] 我爱北京GitHub。3.14%"


@pytest.mark.parametrize("class_name", ["AutoTokenizer", "BertTokenizer", "BertTokenizerFast"])
def test_transformers_loads_what_is_saved(
    class_name: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    import transformers

    folder = tmp_path / "saved"
    sha256 = save_tokenizer(vocabulary, folder, 64)
    assert sha256 == sha256_of(folder / "vocab.txt")
    theirs = getattr(transformers, class_name).from_pretrained(folder)
    assert theirs.model_max_length == 64
    assert len(theirs) == vocabulary.size
    assert theirs.mask_token_id == vocabulary.special_ids["mask"] == 4
    ours = vocabulary.tokenizer.encode(MIXED, add_special_tokens=False).ids
    assert theirs.encode(MIXED, add_special_tokens=False) == ours
    assert theirs(MIXED)["input_ids"] == [2, *ours, 3]
    assert theirs("[MASK]好")["input_ids"][1] == 4  # a model's tokenizer knows [MASK]


def test_the_public_vocabulary_gives_transformers_ids() -> None:
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the checkout")
    from transformers import BertTokenizerFast

    ours = load_tokenizer(str(SHARED / "vocab.txt"))
    theirs = BertTokenizerFast(str(SHARED / "vocab.txt"))
    text = MIXED + (SHARED / "text/wiki_valid.txt").read_text("utf-8")[:20_000]
    assert ours.tokenizer.encode(text, add_special_tokens=False).ids == theirs.encode(
        text, add_special_tokens=False
    )
    assert ours.size == 21_128


def test_every_way_to_name_one_gives_the_same(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_tokenizer(vocabulary, folder, 64)
    ways = [str(folder), str(folder / "vocab.txt"), str(folder / "tokenizer.json")]
    for way in ways:
        loaded = load_tokenizer(way)
        assert loaded.pieces == vocabulary.pieces
        assert loaded.normalizer == vocabulary.normalizer
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(str(folder)).pieces == vocabulary.pieces


def test_a_cased_tokenizer_stays_cased(vocabulary_file: Path, tmp_path: Path) -> None:
    vocabulary_file.with_name("tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_tokenizer(str(vocabulary_file))
    assert cased.tokenizer.encode("HELLO", add_special_tokens=False).tokens == ["[UNK]"]
    save_tokenizer(cased, tmp_path / "again", 8)
    assert load_tokenizer(str(tmp_path / "again")).normalizer["lowercase"] is False


def test_learning_is_the_same_in_any_order_and_keeps_han_whole() -> None:
    texts = ["我爱北京 hello hello GitHub github", "北京 hello world world 12 12 12", "罕"]
    counts = count_pieces(texts)
    assert counts["北"] == 2
    backwards = Counter(dict(reversed(list((count_pieces(texts[::-1])).items()))))
    first = learn_vocabulary(counts, 200, 2)
    assert learn_vocabulary(backwards, 200, 2).pieces == first.pieces
    assert first.pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert first.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert "北" in first.pieces
    assert "北京" not in first.pieces
    assert "罕" not in first.pieces  # seen once
    assert {"hello", "world", "12"} <= set(first.pieces)
    assert "罕" in learn_vocabulary(counts, 200, 1).pieces


def test_learning_keeps_to_its_size_and_prefers_frequent_characters() -> None:
    counts = Counter({chr(0x4E00 + i): 1000 - i for i in range(300)})
    learnt = learn_vocabulary(counts, 105, 1)
    assert learnt.size == 105
    assert set(learnt.pieces[5:]) == {chr(0x4E00 + i) for i in range(100)}


def test_nothing_to_learn_from() -> None:
    with pytest.raises(CorpusError, match="vocabulary_minimum_frequency"):
        learn_vocabulary(Counter({"我": 1}), 100, 2)


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "我\n爱\n", r"vocab.txt: it lacks \[PAD\], \[UNK\]"),
        ("vocab.txt", SPECIAL + "我\n我\n", "'我' stands there twice"),
        ("vocab.txt", SPECIAL + "\n".join(map(str, range(66_000))), "66,005 pieces"),
        ("tokenizer.json", "{", "not a tokenizer.json"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
        (
            "tokenizer.json",
            json.dumps({"model": {"type": "BPE"}, "normalizer": None, "pre_tokenizer": None}),
            r"BERT WordPiece tokenizer is needed.*this is BPE",
        ),
    ],
)
def test_what_is_no_bert_tokenizer(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_tokenizer(write(tmp_path / name, content))


def test_a_tokenizer_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file or folder"):
        load_tokenizer(str(tmp_path / "missing" / "vocab.txt"))
    with pytest.raises(ModelError, match=r"neither tokenizer.json nor vocab.txt"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match=r"nobody/nothing: neither a file or folder here"):
        load_tokenizer("nobody/nothing")  # the tests' environment is offline
