import pickle
from pathlib import Path

import numpy as np
import pytest

from lert_ds.data.loader import evaluation_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.shards import Corpus
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of
from lert_ds.vocabulary_view import in_vocabulary_of, places


def write_vocabulary(folder: Path, pieces: list[str]) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return folder


@pytest.fixture
def pieces(tiny_corpus: Path) -> list[str]:
    return (tiny_corpus / "vocab.txt").read_text("utf-8").splitlines()


def test_ids_are_those_of_the_smaller_vocabulary(
    tiny_corpus: Path, tmp_path: Path, pieces: list[str]
) -> None:
    kept = pieces[:5] + pieces[6::2]
    folder = write_vocabulary(tmp_path / "smaller", kept)
    whole = Corpus([tiny_corpus])
    # A loader's workers get it pickled.
    smaller = pickle.loads(pickle.dumps(in_vocabulary_of(whole, folder)))
    assert len(smaller) == len(whole)
    gone = 0
    for index in range(len(whole)):
        before, after = whole[index], smaller[index]
        names = [pieces[number] for number in before.input_ids]
        wanted = [name if name in kept else "[UNK]" for name in names]
        assert [kept[number] for number in after.input_ids] == wanted
        assert np.array_equal(before.word_starts, after.word_starts)
        gone += wanted.count("[UNK]")
    assert gone
    assert smaller.manifest.vocabulary_size == len(kept)
    assert smaller.manifest.tokenizer_sha256 == sha256_of(folder / "vocab.txt")
    assert whole.manifest.vocabulary_size == len(pieces)  # the whole one is as it was


def test_a_vocabulary_without_unk_is_refused(
    tiny_corpus: Path, tmp_path: Path, pieces: list[str]
) -> None:
    folder = write_vocabulary(tmp_path / "smaller", [pieces[0], *pieces[2:5], *pieces[6:]])
    with pytest.raises(ModelError):
        in_vocabulary_of(Corpus([tiny_corpus]), folder)  # no [UNK] is left to read the others as


def test_the_places_to_predict_are_the_same(
    tiny_corpus: Path, tmp_path: Path, pieces: list[str]
) -> None:
    whole = Corpus([tiny_corpus])
    smaller = in_vocabulary_of(whole, write_vocabulary(tmp_path / "s", pieces[:5] + pieces[20:]))
    for one, other in zip(
        evaluation_batches(whole, MaskingConfig(), 8),
        evaluation_batches(smaller, MaskingConfig(), 8, with_missing=True),
        strict=True,
    ):
        assert one.masked_positions.tolist() == other.masked_positions.tolist()
        assert int(other.input_ids.max()) < len(smaller.manifest.special_ids) + 40
        assert int(other.labels.max()) < smaller.manifest.vocabulary_size


def test_what_has_no_piece_is_not_learnt(
    tiny_corpus: Path, tmp_path: Path, pieces: list[str]
) -> None:
    whole = Corpus([tiny_corpus])
    smaller = in_vocabulary_of(whole, write_vocabulary(tmp_path / "s", pieces[:5] + pieces[20:]))
    for one, other in zip(
        evaluation_batches(smaller, MaskingConfig(), 8, with_missing=True),
        evaluation_batches(smaller, MaskingConfig(), 8),
        strict=True,
    ):
        known = one.labels != 1
        assert 0 < int(known.sum()) < len(known)
        assert other.labels.tolist() == one.labels[known].tolist()
        assert other.masked_positions.tolist() == one.masked_positions[known].tolist()
        assert other.tags["pos"].tolist() == one.tags["pos"][known].tolist()
        assert other.input_ids.tolist() == one.input_ids.tolist()


def test_one_vocabulary_is_no_view(tiny_corpus: Path, tmp_path: Path, pieces: list[str]) -> None:
    corpus = Corpus([tiny_corpus])
    assert in_vocabulary_of(corpus, write_vocabulary(tmp_path / "same", pieces)) is corpus
    assert places(tiny_corpus, tmp_path / "same") is None


@pytest.mark.parametrize("change", ["another", "added", "order"])
def test_another_tokenizer_is_refused(
    tiny_corpus: Path, tmp_path: Path, pieces: list[str], change: str
) -> None:
    others = {
        "another": pieces[:5] + list("abc"),
        "added": [*pieces[:30], "龘"],
        "order": pieces[:5] + pieces[:4:-1],
    }
    folder = write_vocabulary(tmp_path / "other", others[change])
    with pytest.raises(ModelError, match="tokenizer"):
        in_vocabulary_of(Corpus([tiny_corpus]), folder)
