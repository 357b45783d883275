"""Which pieces stay, by counts and by rule, and what that does to held-out text."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from lert_ds import config, tokenizer_files
from lert_ds.data.shards import HELD_OUT, Corpus
from lert_ds.errors import ConfigError, ModelError
from prune.vocabulary import texts
from prune.vocabulary.choice import VocabularyConfig, choose, count, must_keep, prune_vocabulary
from prune.vocabulary.texts import count_ids, read_lines, split_sentences, tokenize

SHARED = Path(__file__).parents[3] / "../shared/data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [
    *("[unused1]", *SPECIAL, "今", "##今", "天", "##天", "铩", "。", "##。", "→", "$", "1", "##1"),
    *("12", "a", "##a", "b", "##b", "ab", "##ab", "A", "да", "д", "##д", "##а", "а", "я"),
]
IN_NO_TEXT = ("[unused1]", "##今", "##天", "##。", "A")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    return folder


def parse(**tree: Any) -> VocabularyConfig:
    return config.parse(VocabularyConfig, tree, "test")


def names(tokenizer: Any, ids: Any) -> set[str]:
    return {piece for piece, number in tokenizer.get_vocab().items() if number in ids}


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def test_what_stays_uncounted(source: Path) -> None:
    tokenizer = tokenizer_files.load(source)
    digits, letters = {"1", "##1"}, {"a", "##a", "b", "##b"}
    # ##。 and, in lower case, A are in no text.
    marks = {"。", "$"}
    assert names(tokenizer, must_keep(tokenizer, parse())) == {
        *SPECIAL, *digits, *letters, *marks
    }  # fmt: skip
    for groups, wanted in (
        ([], set()),
        (["digits"], digits),
        (["latin_pieces"], {*letters, "ab", "##ab"}),
    ):
        found = must_keep(tokenizer, parse(keep_groups=groups))
        assert names(tokenizer, found) == {*SPECIAL, *wanted}


def test_case_and_han_words_follow_the_tokenizer(source: Path) -> None:
    (source / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "tokenize_chinese_chars": False})
    )
    tokenizer = tokenizer_files.load(source)
    found = must_keep(tokenizer, parse(keep="今", keep_groups=["latin_letters"]))
    assert names(tokenizer, found) == {*SPECIAL, "a", "##a", "b", "##b", "A", "今", "##今"}


def test_named_pieces_stay_with_their_characters(source: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_files.load(source)
    file = write(tmp_path / "keep.txt", "да\n\n铩\r\n")
    found = must_keep(tokenizer, parse(keep=["天", "[unused1]"], keep_file=file, keep_groups=[]))
    cyrillic = {"да", "д", "##д", "а", "##а"}
    assert names(tokenizer, found) == {*SPECIAL, "天", "[unused1]", "铩", *cyrillic}


def test_added_tokens_stay_and_their_characters_need_not(source: Path) -> None:
    tokenizer = tokenizer_files.load(source)
    tokenizer.add_tokens(["天铩"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e>"]})
    found = must_keep(tokenizer, parse(keep_groups=[]))
    assert names(tokenizer, found) == {*SPECIAL, "天铩", "<e>"}


def test_counts_of_text_are_those_of_its_pieces(source: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "1", "今天AB11\n今?\n")
    second = write(tmp_path / "2", "\n天[MASK]")
    counts = count(source, parse(input=[first, second]))
    found = {PIECES[number]: int(n) for number, n in enumerate(counts) if n}
    assert found == {"今": 2, "天": 2, "ab": 1, "##1": 2, "[UNK]": 1, "[MASK]": 1}
    assert len(counts) == len(PIECES)


def test_counts_of_corpora_and_text_add_up(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BATCH_SIZE", 10)
    folders = [str(tiny_corpus), str(tiny_corpus / HELD_OUT)]
    counts = count(tiny_corpus, parse(corpus=folders))
    corpus = Corpus([Path(folder) for folder in folders])
    by_hand = Counter(n for i in range(len(corpus)) for n in corpus[i].input_ids.tolist())
    assert {n: c for n, c in enumerate(counts.tolist()) if c} == by_hand
    text = write(tmp_path / "text", "丁丁\n")  # U+4E01, the second character of the corpus
    both = count(tiny_corpus, parse(corpus=folders, input=text))
    assert both[6] == counts[6] + 2
    assert both.sum() == counts.sum() + 2


def test_the_most_frequent_stay(source: Path) -> None:
    tokenizer = tokenizer_files.load(source)
    ids = tokenizer.get_vocab()
    counts = np.zeros(len(PIECES), np.int64)
    for piece, number in (("天", 9), ("да", 5), ("今", 3), ("铩", 3), ("→", 1), ("[CLS]", 99)):
        counts[ids[piece]] = number
    base = len(must_keep(tokenizer, parse()))

    def chosen(**rules: Any) -> set[str]:
        kept = choose(tokenizer, counts, parse(**rules))
        assert kept.dtype == torch.int64
        assert kept.tolist() == sorted(set(kept.tolist()))
        return names(tokenizer, set(kept.tolist()) - must_keep(tokenizer, parse()))

    cyrillic = {"да", "д", "##д", "а", "##а"}
    assert chosen() == {"天", "今", "铩", "→", *cyrillic}
    assert chosen(minimum_count=3) == {"天", "今", "铩", *cyrillic}
    assert chosen(minimum_count=4) == {"天", *cyrillic}
    # A piece is kept with all its characters or, with all that is rarer, not at all.
    assert chosen(size=base) == set()
    assert chosen(size=base + 1) == chosen(size=base + 5) == {"天"}
    assert chosen(size=base + 6) == {"天", *cyrillic}
    assert chosen(size=base + 7) == {"天", "今", *cyrillic}  # 铩 as often, but its id is larger
    assert chosen(size=1000, minimum_count=5) == {"天", *cyrillic}


def test_size_stays_within_and_grows_by_what_it_adds(source: Path) -> None:
    tokenizer = tokenizer_files.load(source)
    least = len(must_keep(tokenizer, parse()))

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 5), min_size=len(PIECES), max_size=len(PIECES)))
    def check(numbers: list[int]) -> None:
        counts = np.array(numbers)
        smaller: set[int] = set()
        for size in range(least, len(PIECES) + 1):
            kept = set(choose(tokenizer, counts, parse(size=size)).tolist())
            assert smaller <= kept
            assert len(kept) <= size
            smaller = kept
        # Every piece that occurs, and the characters it is spelled with, are there in the end.
        for number in np.flatnonzero(counts).tolist():
            assert number in kept
            if PIECES[number] not in (*SPECIAL, *IN_NO_TEXT):
                for character in PIECES[number].removeprefix("##"):
                    assert tokenizer.convert_tokens_to_ids(character) in kept  # or it is [UNK]

    check()


def test_the_whole_way(source: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train", "今天。ab\n")
    valid = write(tmp_path / "valid", "今天。铩aba\n")
    target = tmp_path / "target"
    found = prune_vocabulary(source, parse(input=train, input_valid=valid), target)
    pruned = BertTokenizer.from_pretrained(target)
    kept = names(tokenizer_files.load(source), found.pieces.tolist())
    assert kept == {*SPECIAL, "1", "##1", "a", "##a", "b", "##b", "。", "$", "今", "天", "ab"}
    assert tokenizer_files.pieces(pruned) == [PIECES[n] for n in found.pieces.tolist()]
    assert found.coverage is not None
    assert (found.coverage.sentences, found.coverage.changed_sentences) == (2, 1)
    assert found.coverage.lost_pieces == (("铩", 1),)
    assert prune_vocabulary(source, parse(input=train), tmp_path / "t2").coverage is None


def test_the_whole_way_with_corpora(tiny_corpus: Path, tmp_path: Path) -> None:
    rules = parse(corpus=str(tiny_corpus), corpus_valid=str(tiny_corpus / HELD_OUT))
    coverage = prune_vocabulary(tiny_corpus, rules, tmp_path / "target").coverage
    assert coverage is not None
    assert coverage.tokens == 13 * 30
    assert coverage.kept_share == 1
    rules = parse(**{**config.dump(rules), "size": 20})
    coverage = prune_vocabulary(tiny_corpus, rules, tmp_path / "less").coverage
    assert coverage is not None
    assert 0.2 < coverage.kept_share < 0.8
    assert coverage.new_unknown_share == pytest.approx(1 - coverage.kept_share)


def test_bad_input_is_told_in_a_sentence(source: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "text", "今天\n")
    (tmp_path / "gbk").write_bytes("今天".encode("gbk"))
    gbk = str(tmp_path / "gbk")
    least = len(must_keep(tokenizer_files.load(source), parse()))
    target = tmp_path / "target"
    for tree, message in (
        ({}, r"input = \[\] and corpus = \[\]: name text files or corpus folders"),
        ({"input": gbk}, "input = .*gbk: line 1 is not UTF-8"),
        ({"input": text, "keep_file": gbk}, "keep_file = .*gbk: line 1 is not UTF-8"),
        ({"input": text, "input_valid": "none"}, "input_valid = none: there is no such file"),
        ({"input": gbk, "input_valid": "none"}, "input_valid = none"),  # told before the counting
        ({"input": text, "keep": "今天"}, "keep = '今天' is no piece .* cuts it into 今, 天; name"),
        ({"input": text, "keep_file": write(tmp_path / "k", "今\n火\n")}, "k: '火' is no piece"),
        ({"input": text, "size": least - 1}, f"size = {least - 1}: .* raise size to {least} or"),
    ):
        with pytest.raises(ConfigError, match=message):
            prune_vocabulary(source, parse(**tree), target)
        assert not target.exists()
    with pytest.raises(ModelError, match="its tokenizer differs from that of the corpus"):
        prune_vocabulary(source, parse(corpus=str(tiny_corpus)), target)
    with pytest.raises(ConfigError, match=r"keep_groups.0 = 'kana'"):
        parse(keep_groups=["kana"])


@pytest.fixture(scope="module")
def chinese_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vocabulary of Chinese BERT, pruned by wiki_train to 3,000 in `pruned`."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the checkout")
    folder = tmp_path_factory.mktemp("chinese")
    (folder / "vocab.txt").write_bytes((SHARED / "vocab.txt").read_bytes())
    rules = parse(input=str(SHARED / "text/wiki_train.txt"), size=3000)
    ids = prune_vocabulary(folder, rules, folder / "pruned").pieces
    np.save(folder / "ids.npy", ids.numpy())
    return folder


def test_real_text_changes_only_where_a_piece_went(chinese_bert: Path) -> None:
    whole = tokenizer_files.load(chinese_bert)
    pruned = tokenizer_files.load(chinese_bert / "pruned")
    ids = np.load(chinese_bert / "ids.npy")
    assert len(pruned) == len(ids) <= 3000
    sentences = list(split_sentences(read_lines([SHARED / "text/wiki_valid.txt"], "text")))
    before = tokenize(whole, sentences)
    after = [ids[row].tolist() for row in tokenize(pruned, sentences)]
    kept = set(ids.tolist())
    covered = [kept.issuperset(row) for row in before]
    assert [old == new for old, new in zip(before, after, strict=True)] == covered
    assert 0.3 < sum(covered) / len(covered) < 0.7
    assert count_ids(before, 21128)[ids].sum() / sum(map(len, before)) > 0.95


def test_every_kept_character_can_go_on(chinese_bert: Path) -> None:
    """No word of known letters is [UNK] for want of a ## form."""
    pruned = tokenizer_files.load(chinese_bert / "pruned")
    assert pruned.tokenize("qzxjvkw7401qzx") == [*"q", *(f"##{c}" for c in "zxjvkw7401qzx")]
