"""A tokenizer's files: copied as they are, completed for every reader."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

from lert_ds import tokenizer_files
from lert_ds.errors import ModelError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "今", "天", "B", "##c", "b"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_every_reader_finds_its_file(source: Path, target: Path) -> None:
    tokenizer_files.copy(source, target, vocabulary_size=10)
    assert {path.name for path in target.iterdir()} == {
        "vocab.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    settings = json.loads((target / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "BertTokenizer"
    assert "is_local" not in settings
    text = "今天[MASK]bc"
    wanted = tokenizer_files.load(source)(text)["input_ids"]
    assert (
        AutoTokenizer.from_pretrained(target)(text)["input_ids"] == wanted == [2, 5, 6, 4, 9, 8, 3]
    )
    (target / "tokenizer.json").unlink()
    assert BertTokenizer.from_pretrained(target)(text)["input_ids"] == wanted


def test_files_are_copied_byte_for_byte(source: Path, target: Path, tmp_path: Path) -> None:
    (source / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer_files.copy(source, target, vocabulary_size=10)
    # It names no class, so it is written anew; what it says stays.
    assert tokenizer_files.load(target)("B")["input_ids"] == [2, 7, 3]
    third = tmp_path / "third"
    third.mkdir()
    tokenizer_files.copy(target, third, vocabulary_size=10)
    for path in target.iterdir():
        assert (third / path.name).read_bytes() == path.read_bytes(), path.name


def test_vocabulary_is_written_where_transformers_leaves_it_out(
    source: Path, target: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    BertTokenizer.from_pretrained(source).save_pretrained(saved)
    assert not (saved / "vocab.txt").exists()
    tokenizer_files.copy(saved, target, vocabulary_size=10)
    assert (target / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()


def test_pieces_are_in_the_order_of_their_ids(source: Path) -> None:
    assert tokenizer_files.pieces(tokenizer_files.load(source)) == PIECES


def test_bad_folders_are_refused(source: Path, target: Path) -> None:
    with pytest.raises(ModelError, match=r"target: no tokenizer \(neither vocab.txt nor"):
        tokenizer_files.load(target)
    with pytest.raises(ModelError, match="its tokenizer has 10 pieces, the model embeds 9"):
        tokenizer_files.copy(source, target, vocabulary_size=9)
    (target / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="target: its tokenizer cannot be read"):
        tokenizer_files.load(target)


def test_a_vocabulary_of_any_name_is_a_tokenizer(source: Path, tmp_path: Path) -> None:
    (source / "vocab.txt").rename(tmp_path / "words.txt")
    with tokenizer_files.folder_of(tmp_path / "words.txt") as folder:
        assert tokenizer_files.pieces(tokenizer_files.load(folder)) == PIECES
    assert not folder.exists()
