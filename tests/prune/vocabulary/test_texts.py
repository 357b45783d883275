"""Lines, sentences and the text of a corpus, for the vocabulary."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds import tokenizer_files
from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError
from prune.vocabulary import texts


def test_lines_of_all_files_without_blank_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("今天\r\n\n  \n好\u2028的\n".encode())
    (tmp_path / "b").write_bytes(b"end")
    lines = texts.read_lines([tmp_path / "a", tmp_path / "b"], "input")
    assert list(lines) == ["今天", "好\u2028的", "end"]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gbk").write_bytes("今天\n".encode() + "中文".encode("gbk"))
    (tmp_path / "blank").write_text(" \n\n")
    with pytest.raises(ConfigError, match=r"input_valid = .*none: there is no such file"):
        texts.read_lines([tmp_path / "none"], "input_valid")  # told before it is read
    with pytest.raises(ConfigError, match=r"input = .*gbk: line 2 is not UTF-8; .* convert it"):
        list(texts.read_lines([tmp_path / "gbk"], "input"))
    with pytest.raises(ConfigError, match=r"input = .*blank: there is no text in it"):
        list(texts.read_lines([tmp_path / "blank"], "input"))


def test_sentences_keep_their_marks() -> None:
    found = texts.split_sentences(["今天。 好吗？！", "第一\n第二；三; a.b", "。"])
    assert list(found) == ["今天。", "好吗？", "！", "第一", "第二；", "三; a.b", "。"]


def test_words_are_joined_again() -> None:
    assert texts.join_pieces(["今", "un", "##known", "##s", "#", "[UNK]"]) == "今 unknowns # [UNK]"
    assert texts.join_pieces(["a", "##", "b"]) == "a ## b"  # a piece of its own, not a sign


def test_an_instance_is_text_of_the_same_pieces(tiny_corpus: Path) -> None:
    corpus = Corpus([tiny_corpus])
    tokenizer = tokenizer_files.load(tiny_corpus)
    found = texts.tokenize(tokenizer, list(texts.read_instances(corpus, tokenizer)))
    assert len(found) == len(corpus)
    for index, ids in enumerate(found):
        assert ids == corpus[index].input_ids[1:-1].tolist()


def test_what_was_unknown_in_an_instance_stays(tiny_corpus: Path) -> None:
    class OneInstance:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return SimpleNamespace(input_ids=np.array([2, 5, 1, 6, 3, 0, 0]))

    tokenizer = tokenizer_files.load(tiny_corpus)
    found = texts.read_instances(OneInstance(), tokenizer)  # type: ignore[arg-type]
    assert texts.tokenize(tokenizer, list(found)) == [[5, 1, 6]]


@given(st.lists(st.lists(st.integers(0, 4))))
def test_ids_are_counted(rows: list[list[int]]) -> None:
    flat = [number for row in rows for number in row]
    assert texts.count_ids(rows, 5).tolist() == [flat.count(number) for number in range(5)]


def test_batches_lose_nothing() -> None:
    items = list(range(2 * texts.BATCH_SIZE + 1))
    found = list(texts.batches(items))
    assert [len(batch) for batch in found] == [texts.BATCH_SIZE, texts.BATCH_SIZE, 1]
    assert np.concatenate(found).tolist() == items


def test_without_a_file_the_text_is_the_sample_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("今天\n\n天气\n", "utf-8")
    assert texts.read_text(path) == "今天\n天气"
    assert len(texts.read_text(None)) > 1000
