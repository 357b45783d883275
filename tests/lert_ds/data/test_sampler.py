import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.data.sampler import MicroBatches, in_order, shuffled, solve_micro_batch_size
from lert_ds.errors import ConfigError

seeds = st.integers(0, 2**64 - 1)


def keys_of(micro_batches: MicroBatches, count: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return number and (epoch, index) pairs of the first micro-batches."""
    return [
        (number, list(zip(*(part.tolist() for part in samples), strict=True)))
        for number, samples in itertools.islice(micro_batches, count)
    ]


@given(st.integers(1, 3000), seeds, st.integers(0, 2**32))
def test_each_epoch_holds_each_instance_once(size: int, seed: int, epoch: int) -> None:
    samples = shuffled(np.arange(epoch * size, (epoch + 1) * size), size, seed)
    assert (samples.epochs == epoch).all()
    np.testing.assert_array_equal(np.sort(samples.indices), np.arange(size))


def test_small_corpora_are_permuted_too() -> None:
    for size in range(1, 130):
        samples = shuffled(np.arange(3 * size), size, 1)
        assert len(set(zip(*(part.tolist() for part in samples), strict=True))) == 3 * size


@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 2**31 + 7, 10**12])
def test_large_corpora_without_repetition_or_pattern(size: int) -> None:
    indices = shuffled(np.arange(100_000), size, 3).indices
    assert len(np.unique(indices)) == 100_000
    assert indices.min() >= 0
    assert indices.max() < size
    counts, _ = np.histogram(indices, bins=64, range=(0, size))
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 120, "the 63 degrees of freedom exceed 120 once in 60,000"
    steps = np.diff(indices) % size
    counts, _ = np.histogram(steps, bins=64, range=(0, size))
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 120


@pytest.mark.parametrize(("size", "bound"), [(2, 20), (3, 30), (10, 160), (33, 1300)])
def test_every_instance_comes_at_every_place_as_often(size: int, bound: int) -> None:
    epochs = 4000
    indices = shuffled(np.arange(size * epochs), size, 6).indices.reshape(epochs, size)
    counts = np.zeros((size, size))
    np.add.at(counts, (np.broadcast_to(np.arange(size), indices.shape), indices), 1)
    expected = epochs / size
    # Chi-square with (size - 1)² degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < bound


def test_a_sample_is_a_function_of_its_position_alone() -> None:
    positions = np.arange(5000)
    whole = shuffled(positions, 777, 5)
    generator = np.random.default_rng(0)
    some = generator.permutation(positions)[:100]
    part = shuffled(some, 777, 5)
    np.testing.assert_array_equal(part.indices, whole.indices[some])
    np.testing.assert_array_equal(part.epochs, some // 777)
    assert shuffled(1234, 777, 5).indices.tolist() == [whole.indices[1234]]


def test_epochs_and_seeds_differ() -> None:
    size = 1000
    orders = {
        tuple(shuffled(np.arange(epoch * size, (epoch + 1) * size), size, seed).indices.tolist())
        for epoch in range(5)
        for seed in (0, 1, 2, 2**64 - 1)
    }
    assert len(orders) == 20


def test_golden_order() -> None:
    # A change here changes every run that is resumed: raise the checkpoint's version with it.
    indices = shuffled(np.arange(12), 10, 20221110).indices
    assert indices.tolist() == [5, 3, 6, 4, 1, 7, 0, 2, 8, 9, 4, 0]


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 3), seeds, st.integers(0, 5))
def test_the_stream_is_the_same_for_any_number_of_ranks(
    size: int, micro: int, accumulation: int, seed: int, first_step: int
) -> None:
    world = 4
    batch = micro * accumulation * world
    steps = 3
    start = first_step * batch

    def stream(world_size: int) -> dict[int, list[tuple[int, int]]]:
        each = steps * batch // micro // world_size
        parts = [
            keys_of(MicroBatches(size, seed, batch, micro, rank, world_size, start), each)
            for rank in range(world_size)
        ]
        numbers = [number for part in parts for number, _ in part]
        assert len(numbers) == len(set(numbers)), "two ranks own the same micro-batch"
        return dict(pair for part in parts for pair in part)

    alone = stream(1)
    assert alone == stream(2) == stream(4)
    assert sorted(alone) == [start // micro + number for number in range(steps * batch // micro)]
    samples = [key for number in sorted(alone) for key in alone[number]]
    expected = shuffled(np.arange(start, start + steps * batch), size, seed)
    assert samples == list(zip(*(part.tolist() for part in expected), strict=True))


def test_ranks_take_turns_within_a_step() -> None:
    parts = [MicroBatches(100, 0, 12, 2, rank, 3, start=12).numbers() for rank in range(3)]
    assert [[next(part) for _ in range(4)] for part in parts] == [
        [6, 9, 12, 15],
        [7, 10, 13, 16],
        [8, 11, 14, 17],
    ]


@given(st.integers(1, 20), st.integers(0, 6))
def test_a_resumed_run_continues_the_stream(size: int, steps_done: int) -> None:
    batch, micro, world = 8, 2, 2
    for rank in range(world):
        whole = keys_of(MicroBatches(size, 9, batch, micro, rank, world), 20)
        tail = keys_of(MicroBatches(size, 9, batch, micro, rank, world, steps_done * batch), 8)
        assert tail == whole[steps_done * 2 :][:8]


def test_a_run_resumed_with_another_batch_size_skips_and_repeats_nothing() -> None:
    consumed = 3 * 10  # three steps of 10 samples, then micro-batches of 4
    micro_batches = MicroBatches(1000, 1, batch_size=8, micro_batch_size=4, start=consumed)
    after = [key for _, keys in keys_of(micro_batches, 5) for key in keys]
    expected = shuffled(np.arange(consumed, consumed + 20), 1000, 1)
    assert [index for _, index in after] == expected.indices.tolist()


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 8))
def test_the_micro_batch_is_the_largest_that_deals_the_batch(
    share: int, largest: int, world: int
) -> None:
    size = solve_micro_batch_size(share * world, largest, world)
    assert share % size == 0
    assert size <= largest
    assert not [n for n in range(size + 1, largest + 1) if share % n == 0]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))
def test_another_number_of_ranks_goes_on_with_the_next_sample(
    share: int, largest: int, before: int, after: int
) -> None:
    batch, steps = share * before * after, 2
    taken: list[tuple[int, int]] = []
    for world, start in ((before, 0), (after, steps * batch)):
        micro = solve_micro_batch_size(batch, largest, world)
        each = steps * batch // micro // world
        numbered = {}
        for rank in range(world):
            numbered |= dict(keys_of(MicroBatches(97, 5, batch, micro, rank, world, start), each))
        taken += [key for number in sorted(numbered) for key in numbered[number]]
    expected = shuffled(np.arange(2 * steps * batch), 97, 5)
    assert taken == list(zip(*(part.tolist() for part in expected), strict=True))


@pytest.mark.parametrize(
    ("batch", "world", "nearest", "fewer"),
    [
        (100, 8, "96 or 104", "5 processes"),
        (3, 4, "4", "3 processes"),
        (7, 4, "4 or 8", "1 process"),
    ],
)
def test_a_batch_that_the_processes_cannot_share_is_refused(
    batch: int, world: int, nearest: str, fewer: str
) -> None:
    with pytest.raises(ConfigError) as error:
        solve_micro_batch_size(batch, 8, world)
    message = str(error.value)
    assert f"train.batch_size = {batch} is no multiple of {world} processes" in message
    assert message.endswith(f"set train.batch_size = {nearest}, or start {fewer}")
    for size in nearest.split(" or "):
        assert solve_micro_batch_size(int(size), 8, world)
    assert solve_micro_batch_size(batch, 8, int(fewer.split()[0]))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 40), st.integers(1, 4))
def test_one_micro_batch_deals_every_batch_of_a_warmup(
    shares: list[int], largest: int, world: int
) -> None:
    sizes = [share * world for share in shares]
    size = solve_micro_batch_size(sizes[-1], largest, world, sizes)
    assert size <= largest
    assert all(share % size == 0 for share in shares)
    larger = range(size + 1, largest + 1)
    assert not [n for n in larger if all(share % n == 0 for share in shares)]


def test_a_batch_of_a_warmup_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        solve_micro_batch_size(64, 8, 4, [6, 32, 64])
    assert str(error.value) == (
        "train.batch_warmup has a batch of 6 instances, which is no multiple of 4 processes; set "
        "it to 4 or 8, or start 2 processes"
    )


@given(st.integers(1, 50), st.lists(st.integers(1, 5), min_size=1, max_size=6), seeds)
def test_a_growing_batch_changes_no_micro_batch_and_no_owner(
    size: int, shares: list[int], seed: int
) -> None:
    micro, world = 2, 3
    batches = [share * micro * world for share in shares]
    owned = [
        dict(keys_of(MicroBatches(size, seed, batches[-1], micro, rank, world), sum(shares)))
        for rank in range(world)
    ]
    taken = {number: keys for part in owned for number, keys in part.items()}
    assert sorted(taken) == list(range(sum(batches) // micro))
    # From step k on, as a resumed run takes it: the same numbers, the same owners.
    for step in range(len(shares)):
        start, left = sum(batches[:step]), sum(shares[step:])
        for rank in range(world):
            order = MicroBatches(size, seed, batches[-1], micro, rank, world, start)
            tail = dict(keys_of(order, left))
            first = start // micro
            assert tail == {n: keys for n, keys in owned[rank].items() if n >= first}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 8))
def test_evaluation_counts_each_instance_once(size: int, micro: int, world: int) -> None:
    plans = [in_order(size, micro, rank, world) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    seen = [index for batches in zip(*plans, strict=True) for part in batches for index in part]
    assert seen == list(range(size))
    assert all(len(part) <= micro for plan in plans for part in plan)
    batches = len(plans[0]) * world
    assert batches - world < -(-size // micro) <= batches, "no more rounds than are needed"
