import itertools
from dataclasses import replace

import torch

from lert_ds.data.masking import MaskingConfig
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS
from lert_ds.train.trainer import TrainConfig
from lert_ds.training_benchmark.synthetic_data import SAMPLES, SyntheticData
from lert_ds.training_data import DataFacts

DATA = SyntheticData(DataFacts(64, 1000, 0, LTP_TAGS, None, 0), MaskingConfig())


def test_a_batch_is_masked_as_packed_text_is() -> None:
    batch = DATA.batch(5, 64, seed=3)
    budget = MaskingConfig().budget(62, 64)
    assert batch.input_ids.shape == (5, 64)
    assert batch.attention_mask is None
    assert len(batch.masked_positions) == len(batch.labels) == 5 * budget
    rows = batch.masked_positions.view(5, budget)
    for number, row in enumerate(rows):
        assert len(row.unique()) == budget
        assert number * 64 < row.min()
        assert row.max() < number * 64 + 63  # neither [CLS] nor [SEP]
    assert batch.input_ids.max() < 1000
    for task, tags in LTP_TAGS.items():
        classes = batch.tags[task]
        known = classes[classes != IGNORE_INDEX]
        assert 0 < len(known) < len(classes)
        assert known.max() < len(tags)
    assert torch.equal(DATA.batch(5, 64, seed=3).input_ids, batch.input_ids)
    assert not torch.equal(DATA.batch(5, 64, seed=4).input_ids, batch.input_ids)


def test_documents_fill_instances() -> None:
    ends = replace(DATA, parts_documents=True).batch(3, 64, seed=0).document_ends
    assert ends is not None
    assert ends.tolist() == list(range(16, 193, 16))
    assert DATA.batch(3, 64, seed=0).document_ends is None


def test_batches_take_turns() -> None:
    train = TrainConfig(steps=1, batch_size=2, micro_batch_size=2, learning_rate=1.0)
    training = DATA.batches(train, 0, 2).training(0, 0)
    taken = list(itertools.islice(training, SAMPLES + 1))
    assert [number for number, _ in taken] == list(range(SAMPLES + 1))
    assert torch.equal(taken[0][1].input_ids, taken[-1][1].input_ids)
    assert not torch.equal(taken[0][1].input_ids, taken[1][1].input_ids)
