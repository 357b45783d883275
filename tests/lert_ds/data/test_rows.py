from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.corpus.align import Tokens
from lert_ds.corpus.pack import Packer
from lert_ds.data import rows as module
from lert_ds.data.draws import Draws
from lert_ds.data.masking import MaskingConfig, VocabularyFacts, mask
from lert_ds.data.rows import AS_THE_CORPUS, RowLengths, check_length, masking_of_rows
from lert_ds.data.shards import Instance, Rows
from lert_ds.errors import ConfigError
from lert_ds.labels import IGNORE_INDEX, TASKS

PAD, UNK, CLS, SEP, MASK = range(5)
FACTS = VocabularyFacts(100, {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK})


def instance_of(documents: list[list[int]], length: int, pad: int = 0) -> Instance:
    """Return an instance of documents, each the sizes of its words; cut to fit, `pad` at the end.

    Ids count up from 5, so that each token is known again.
    """
    ids, starts = [CLS], [False]
    for document in documents:
        for size in document:
            ids += [5 + (len(ids) + n) % 90 for n in range(size)]
            starts += [n == 0 for n in range(size)]
        ids, starts = [*ids, SEP], [*starts, False]
    room = length - pad
    ids, starts = ids[:room], starts[:room]
    ids[-1], starts[-1] = SEP, False
    fill = length - len(ids)
    input_ids = np.array(ids + [PAD] * fill, dtype=np.uint16)
    text = input_ids > MASK
    tags = {
        task: np.where(text, (input_ids + place) % 13, IGNORE_INDEX).astype(np.uint8)
        for place, task in enumerate(TASKS)
    }
    return Instance(input_ids, np.array(starts + [False] * fill), tags)


documents = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=30), min_size=1, max_size=5)


def as_rows(instances: list[Instance]) -> Rows:
    tags = {task: np.stack([one.tags[task] for one in instances]) for task in TASKS}
    ids, starts = (np.stack([one[place] for one in instances]) for place in (0, 1))
    return Rows(ids, starts, tags)


def cut(instance: Instance, length: int, facts: VocabularyFacts) -> list[Instance]:
    """Return the rows of one instance; those of another before it are others."""
    other = instance_of([[3, 3]], len(instance.input_ids))
    found = module.cut(as_rows([other, instance]), length, facts)
    count = len(found.input_ids) // 2
    return [found.row(row) for row in range(count, 2 * count)]


def text_of(row: Instance) -> list[int]:
    return row.input_ids[row.input_ids > MASK].tolist()


@given(documents, st.sampled_from([8, 16, 32]), st.integers(0, 20))
def test_rows_are_the_instance_in_order(sizes: list[list[int]], length: int, pad: int) -> None:
    instance = instance_of(sizes, 64, pad)
    rows = cut(instance, length, FACTS)
    assert len(rows) == 64 // length
    whole = text_of(instance)
    found = [token for row in rows for token in text_of(row)]
    assert found == whole[: len(found)]
    # What is left out: two places a row beyond those of the instance, and ends of rows.
    assert len(whole) - len(found) <= (2 + 5) * len(rows)
    place = 0
    for row in rows:
        ids, size = row.input_ids, int((row.input_ids != PAD).sum())
        assert ids.dtype == np.uint16
        assert ids[0] == CLS
        assert ids[size - 1] == SEP
        assert (ids[size:] == PAD).all()
        assert not row.word_starts[ids <= MASK].any()
        if size > 2:
            assert ids[1] > MASK, "a row opens with text"
            assert ids[size - 2] > MASK, "and ends in one [SEP]"
            assert row.word_starts[1], "with a whole word"
        for task, classes in row.tags.items():
            assert (classes[ids <= MASK] == IGNORE_INDEX).all()
            expected = instance.tags[task][instance.input_ids > MASK]
            text = classes[ids > MASK]
            np.testing.assert_array_equal(text, expected[place : place + len(text)])
        place += len(text_of(row))


@given(documents)
def test_words_stay_whole(sizes: list[list[int]]) -> None:
    instance = instance_of(sizes, 64)

    def words(row: Instance) -> list[list[int]]:
        found: list[list[int]] = []
        for token, opens in zip(row.input_ids.tolist(), row.word_starts.tolist(), strict=True):
            if token > MASK:
                found = [*found, [token]] if opens else [*found[:-1], [*found[-1], token]]
        return found

    found = [word for row in cut(instance, 16, FACTS) for word in words(row)]
    assert found == words(instance)[: len(found)]


def test_rows_are_those_that_prepare_packs(tmp_path: Path) -> None:
    """Of a document that goes on, cut at the same borders as a corpus of that length."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 5, 60)
    ids = np.arange(sizes.sum()) % 90 + 5
    starts = np.zeros(len(ids), dtype=np.bool_)
    starts[np.cumsum(sizes) - sizes] = True
    tags = {task: np.full(len(ids), 3, dtype=np.uint8) for task in TASKS}
    special = {"pad": PAD, "cls": CLS, "sep": SEP}
    packed = {}
    for length in (16, 64):
        folder = tmp_path / str(length)
        packer = Packer(folder, "a", length, special, 100, dict.fromkeys(TASKS, 14))
        packer.start_document()
        packer.add(Tokens(ids, starts, tags))
        packer.finish()
        arrays = {
            name: np.load(folder / f"shards/a-000.{name}.npy")
            for name in ("input_ids", "word_starts", *TASKS)
        }
        packed[length] = arrays
    whole = packed[64]
    instance = Instance(
        whole["input_ids"][0], whole["word_starts"][0], {task: whole[task][0] for task in TASKS}
    )
    rows = cut(instance, 16, FACTS)
    for number, row in enumerate(rows[:-1]):  # the last ends where the instance does
        np.testing.assert_array_equal(row.input_ids, packed[16]["input_ids"][number])
        np.testing.assert_array_equal(row.word_starts, packed[16]["word_starts"][number])


def test_a_word_longer_than_a_row_is_cut() -> None:
    first, second, *_ = cut(instance_of([[20]], 32), 8, FACTS)
    assert text_of(first) + text_of(second) == text_of(instance_of([[20]], 32))[:12]


def test_an_instance_that_is_half_empty_makes_as_many_rows() -> None:
    rows = cut(instance_of([[2, 2]], 32), 8, FACTS)
    assert len(rows) == 4
    for row in rows[1:]:
        assert row.input_ids.tolist() == [CLS, SEP, *[PAD] * 6]
        masked = mask(row, Draws(0, 0, 0), MaskingConfig(), FACTS)
        assert not len(masked.positions)


def test_the_full_length_is_the_instance_itself() -> None:
    instance = instance_of([[1, 2, 3]], 32)
    whole = as_rows([instance])
    assert module.cut(whole, 32, FACTS) is whole


def test_a_full_row_of_128_predicts_18() -> None:
    instance = instance_of([[1, 2, 1, 3, 2] * 60], 512)
    for row in cut(instance, 128, FACTS):
        masked = mask(row, Draws(0, 0, 0), MaskingConfig(), FACTS)
        assert len(masked.positions) == 18


def test_predictions_that_are_given_go_in_proportion() -> None:
    given_ones = MaskingConfig(max_predictions=40)
    assert masking_of_rows(given_ones, 128, 512).max_predictions == 10
    assert masking_of_rows(given_ones, 512, 512) is given_ones
    plain = MaskingConfig()
    assert masking_of_rows(plain, 128, 512) is plain


def test_the_length_of_a_sample() -> None:
    lengths = RowLengths([(10, 8), (20, 16), (30, 32)])
    assert [lengths.at(n) for n in (3, 10, 19, 20, 29, 30, 99)] == [8, 8, 8, 16, 16, 32, 32]
    assert AS_THE_CORPUS.at(5) is None


@pytest.mark.parametrize("length", [96, 2, 1024])
def test_a_length_that_does_not_divide_is_refused(length: int) -> None:
    check_length(128, 512)
    check_length(512, 512)
    with pytest.raises(ConfigError, match=r"take one of 8, 16, 32, 64, 128, 256, 512") as error:
        check_length(length, 512)
    assert f"train.lengths has rows of {length} tokens" in str(error.value)
