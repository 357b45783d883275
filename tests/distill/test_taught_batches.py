from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.answers import Answer
from distill.taught_batches import RepeatingCorpora, TaughtBatch, counts_of
from distill.teacher_cache import Layout, TeacherCache
from lert_ds.corpora import open_folders
from lert_ds.train.trainer import TrainConfig

SEED, BATCH = 3, 4
HEADS = Layout(({"pos": 3},), ({},), "bytes")


def stream(folder: Path, masks: int, samples: int = 0, cache: TeacherCache | None = None) -> Any:
    corpora = RepeatingCorpora(**vars(open_folders([folder], [])), masks=masks, cache=cache)
    train = TrainConfig(
        steps=1, batch_size=BATCH, micro_batch_size=BATCH, learning_rate=1.0, data_workers=0
    )
    return corpora.batches(train, SEED, BATCH).training(0, samples)


def epoch_of(batches: Any, instances: int) -> dict[int, bytes]:
    """Return what each instance of an epoch looks like."""
    found = {}
    for _ in range(instances // BATCH):
        _, batch = next(batches)
        for index, ids in zip(batch.rows.indices.tolist(), batch.input_ids, strict=True):
            found[index] = ids.numpy().tobytes()
    return found


@pytest.mark.parametrize("masks", [1, 2])
def test_masks_come_round_again_in_another_order(
    tiny_corpus: Path, tmp_path: Path, masks: int
) -> None:
    instances = len(open_folders([tiny_corpus], []).train)
    assert instances % BATCH == 0
    batches = stream(tiny_corpus, masks, cache=TeacherCache(tmp_path, HEADS, masks, instances))
    epochs = [epoch_of(batches, instances) for _ in range(4)]
    for number, epoch in enumerate(epochs):
        assert (epoch == epochs[0]) == (number % masks == 0)
        assert epoch.keys() == epochs[0].keys()
    assert list(epochs[0]) != list(epochs[masks])


def test_without_repetition_they_are_those_of_any_training(tiny_corpus: Path) -> None:
    corpora = open_folders([tiny_corpus], [])
    train = TrainConfig(
        steps=1, batch_size=BATCH, micro_batch_size=BATCH, learning_rate=1.0, data_workers=0
    )
    usual, ours = corpora.batches(train, SEED, BATCH).training(0, 0), stream(tiny_corpus, 10**6)
    for _ in range(40):
        (number, one), (other_number, other) = next(usual), next(ours)
        assert number == other_number
        assert one.input_ids.equal(other.input_ids)


def test_answers_come_with_the_batches_that_they_are_about(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    instances = len(open_folders([tiny_corpus], []).train)
    cache = TeacherCache(tmp_path, HEADS, 1, instances)
    batches = stream(tiny_corpus, 1, cache=cache)
    for _ in range(instances // BATCH):
        _, batch = next(batches)
        assert isinstance(batch, TaughtBatch)
        assert not batch.answers
        masked, tokens = counts_of(batch.batch)
        assert masked.sum() == len(batch.batch.labels)
        assert masked.min() > 0
        # What a teacher says is here the token that stands there.
        told = Answer({"pos": batch.batch.labels[:, None].float().expand(-1, 3)}, {})
        cache.put(batch.rows, ~cache.has(batch.rows), masked, tokens, [told])
    _, batch = next(batches)
    assert len(cache) == instances  # it was written where the next epoch began
    for _ in range(instances // BATCH):
        assert batch.answers[0].logits["pos"][:, 0].long().equal(batch.batch.labels)
        assert batch.to(torch.device("meta")).answers[0].logits["pos"].device.type == "meta"
        _, batch = next(batches)


def test_a_resumed_stream_goes_on(tiny_corpus: Path) -> None:
    whole = stream(tiny_corpus, 2)
    wanted = [next(whole)[1].input_ids for _ in range(60)][50:]
    resumed = stream(tiny_corpus, 2, samples=50 * BATCH)
    for ids in wanted:
        assert next(resumed)[1].input_ids.equal(ids)


def test_padding_counts_as_no_token(tiny_corpus: Path) -> None:
    _, batch = next(stream(tiny_corpus, 1))
    real = torch.ones_like(batch.input_ids, dtype=torch.bool)
    real[2, 5:] = False
    _, tokens = counts_of(batch._replace(attention_mask=real))
    length = batch.input_ids.shape[1]
    assert np.array_equal(tokens, [length, length, 5, length])
