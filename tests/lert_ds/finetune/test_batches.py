import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.data.sampler import shuffled
from lert_ds.finetune.batches import (
    LENGTH_MULTIPLE,
    POOL_STEPS,
    LikeLengths,
    TaskBatch,
    collate,
    evaluation_batches,
    training_batches,
)
from lert_ds.finetune.features import UNKNOWN, Feature

PAD = 0
Make = Callable[[Sequence[int]], list[Feature]]


def lengths_of(count: int, seed: int = 0) -> Any:
    """Lengths as texts have them: many short, few long."""
    return np.random.default_rng(seed).geometric(0.05, size=count).clip(4, 120)


def test_rows_are_padded_to_a_multiple_and_told_apart_from_padding(make_features: Make) -> None:
    features = make_features([5, 9, 3])
    batch = collate(features, [2, 0, 1], PAD)
    assert batch.input_ids.shape == (3, 16)
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [3, 5, 9]
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.features.tolist() == [2, 0, 1]
    for row, number in enumerate([2, 0, 1]):
        ids, second = features[number].input_ids, features[number].second
        assert batch.input_ids[row, : len(ids)].tolist() == ids.tolist()
        assert batch.input_ids[row, len(ids) :].tolist() == [PAD] * (16 - len(ids))
        types = [0] * second + [1] * (len(ids) - second) + [0] * (16 - len(ids))
        assert batch.token_type_ids[row].tolist() == types
    assert {t.dtype for t in batch if t is not None} == {torch.int64, torch.bool}


def test_rows_of_one_length_have_no_mask_and_no_padding(make_features: Make) -> None:
    batch = collate(make_features([5, 5, 9]), [0, 1], PAD)
    assert batch.attention_mask is None
    assert batch.input_ids.shape == (2, 5)


def test_tags_are_padded_with_what_counts_nowhere() -> None:
    rows = [np.array([UNKNOWN, 3, UNKNOWN]), np.array([UNKNOWN, 1, 2, 0, UNKNOWN])]
    features = [Feature(np.ones(len(r), np.int32), len(r), r, n) for n, r in enumerate(rows)]
    batch = collate(features, [0, 1], PAD)
    assert batch.labels[:, :5].tolist() == [
        [UNKNOWN, 3, UNKNOWN, UNKNOWN, UNKNOWN], [UNKNOWN, 1, 2, 0, UNKNOWN],
    ]  # fmt: skip
    assert (batch.labels[:, 5:] == UNKNOWN).all()


def test_the_places_of_answers_stay() -> None:
    features = [Feature(np.ones(n, np.int32), 2, (n - 2, n - 1), 0) for n in (4, 6)]
    assert collate(features, [0, 1], PAD).labels.tolist() == [[2, 3], [4, 5]]


def test_a_batch_moves_whole(make_features: Make) -> None:
    for lengths in ([5, 9], [5, 5]):
        batch = collate(make_features(lengths), [0, 1], PAD)
        moved = batch.to(torch.device("meta"))
        assert all((a is None) == (b is None) for a, b in zip(batch, moved, strict=True))
        assert {t.device.type for t in moved if t is not None} == {"meta"}
        back = batch.to(torch.device("cpu"))
        assert all(
            a is b is None or torch.equal(a, b)  # type: ignore[arg-type]
            for a, b in zip(batch, back, strict=True)
        )


orders = st.builds(
    LikeLengths,
    st.lists(st.integers(3, 40), min_size=1, max_size=300).map(np.array),
    st.integers(1, 12),
    st.integers(0, 5),
)


@settings(deadline=None)
@given(orders, st.integers(0, 10_000))
def test_a_step_is_a_function_of_the_seed_and_its_number(order: LikeLengths, step: int) -> None:
    again = LikeLengths(order.lengths.copy(), order.batch_size, order.seed)
    found = order.of_step(step)
    assert found.shape == (order.batch_size,)
    assert np.array_equal(found, again.of_step(step))
    assert ((found >= 0) & (found < len(order.lengths))).all()


def test_another_seed_is_another_order() -> None:
    lengths = lengths_of(1000)
    one, other = (LikeLengths(lengths, 8, seed).of_step(0).tolist() for seed in (1, 2))
    assert sorted(one) != sorted(other)


@pytest.mark.parametrize(("features", "batch_size"), [(512, 8), (999, 3), (96, 4), (40, 8), (3, 7)])
def test_every_feature_comes_once_an_epoch(features: int, batch_size: int) -> None:
    order = LikeLengths(lengths_of(features), batch_size, 3)
    steps = int(np.lcm(features, batch_size)) // batch_size * order.pool_steps
    seen = np.concatenate([order.of_step(step) for step in range(steps)])
    epochs = steps * batch_size // features
    assert Counter(seen.tolist()) == dict.fromkeys(range(features), epochs)


def test_the_samples_of_a_pool_are_those_of_the_shuffled_stream() -> None:
    """So nothing comes twice before all came once, but for the order within a pool."""
    order = LikeLengths(lengths_of(700), 8, 3)
    assert order.pool_steps == POOL_STEPS
    size = POOL_STEPS * 8
    for pool in range(4):
        steps = range(pool * POOL_STEPS, (pool + 1) * POOL_STEPS)
        found = np.concatenate([order.of_step(step) for step in steps])
        stream = shuffled(np.arange(pool * size, (pool + 1) * size), 700, 3).indices
        assert sorted(found) == sorted(stream)


@pytest.mark.parametrize(("features", "batch_size"), [(300, 32), (64, 32), (40, 8), (1000, 64)])
def test_a_step_of_a_small_task_is_not_one_feature_again_and_again(
    features: int, batch_size: int
) -> None:
    # All of different lengths: sorted by length, the copies of several epochs lie together.
    order = LikeLengths(np.arange(4, 4 + features), batch_size, 3)
    for step in range(200):
        # Twice where an epoch ends in the pool.
        assert max(Counter(order.of_step(step).tolist()).values()) <= 2


def test_the_rows_of_a_step_are_alike_in_length() -> None:
    lengths, batch_size = lengths_of(4000), 32
    order = LikeLengths(lengths, batch_size, 3)
    of_steps = np.array([lengths[order.of_step(step)] for step in range(4000 // batch_size)])
    in_order = lengths[shuffled(np.arange(of_steps.size), 4000, 3).indices].reshape(of_steps.shape)

    def padding(rows: Any) -> float:
        return float((rows.max(1, keepdims=True) - rows).sum() / rows.sum())

    assert padding(of_steps) < 0.1 < 10 * padding(of_steps) < padding(in_order) * 1.5
    # Neither the steps nor the rows of a step come by length: a run has no short end.
    means = of_steps.mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    rising = np.mean(of_steps[:, 1:] >= of_steps[:, :-1])
    assert rising < 0.8


def rows_of(batch: TaskBatch) -> list[Any]:
    """The rows of a batch without their padding."""
    lengths = [batch.input_ids.shape[1]] * len(batch.input_ids)
    if batch.attention_mask is not None:
        lengths = batch.attention_mask.sum(1).tolist()
    return [
        (int(number), row[:length].tolist(), types[:length].tolist(), int(label))
        for number, row, types, label, length in zip(
            batch.features,
            batch.input_ids,
            batch.token_type_ids,
            batch.labels,
            lengths,
            strict=True,
        )
    ]


@pytest.mark.parametrize(
    ("micro_batch_size", "world_size"), [(1, 1), (2, 1), (8, 1), (1, 2), (4, 2), (2, 4)]
)
def test_the_stream_is_the_same_for_any_micro_batch_and_number_of_processes(
    make_features: Make, micro_batch_size: int, world_size: int
) -> None:
    features, steps = make_features(lengths_of(50)), 40
    order = LikeLengths(lengths_of(50), 8, 3)
    found: dict[int, list[Any]] = {}
    for rank in range(world_size):
        stream = training_batches(
            features, order, micro_batch_size, PAD, start=0, rank=rank, world_size=world_size
        )
        for number, batch in itertools.islice(stream, steps * 8 // micro_batch_size // world_size):
            assert number not in found
            found[number] = rows_of(batch)
    assert sorted(found) == list(range(steps * 8 // micro_batch_size))
    rows = [row for number in sorted(found) for row in found[number]]
    assert [row[0] for row in rows] == [n for s in range(steps) for n in order.of_step(s).tolist()]
    for number, ids, _, label in rows:
        assert ids == features[number].input_ids.tolist()
        assert label == features[number].labels


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_goes_on_where_it_was_left(make_features: Make, rank: int) -> None:
    features = make_features(lengths_of(50))
    order = LikeLengths(lengths_of(50), 8, 3)

    def stream(start: int, count: int) -> list[Any]:
        batches = training_batches(features, order, 2, PAD, start=start, rank=rank, world_size=2)
        return [(number, rows_of(b)) for number, b in itertools.islice(batches, count)]

    whole = stream(0, 200)
    for steps in (1, order.pool_steps - 1, order.pool_steps, 77):
        assert stream(8 * steps, 200 - 2 * steps) == whole[2 * steps :]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 4, 9, 30])
def test_an_evaluation_sees_every_feature_once_on_any_number_of_processes(
    make_features: Make, count: int, world_size: int
) -> None:
    features = make_features(lengths_of(count))
    shares = [
        list(evaluation_batches(features, 4, PAD, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    seen = [n for share in shares for batch in share for n in batch.features.tolist()]
    assert sorted(n for n in seen if n >= 0) == list(range(count))
    for batch in itertools.chain.from_iterable(shares):
        if batch.features[0] < 0:
            assert batch.features.tolist() == [-1]
            assert batch.labels.tolist() == [UNKNOWN]
        else:
            assert [row[1] for row in rows_of(batch)] == [
                features[n].input_ids.tolist() for n in batch.features.tolist()
            ]
    widths = [batch.input_ids.shape[1] for batch in shares[0]]
    assert widths == sorted(widths, reverse=True)  # the largest first: memory runs out at once
    assert all(w % LENGTH_MULTIPLE == 0 for b in shares[0] if b.attention_mask is not None
               for w in b.input_ids.shape[1:])  # fmt: skip
