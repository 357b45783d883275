"""A count of samples to the instances that come next: shuffled without a stored order.

    corpus of 10 instances, batch_size 4, micro_batch_size 2, two ranks

    sample         0  1 | 2  3 | 4  5 | 6  7 | 8  9 | 10 11 | …
    epoch          0  0 | 0  0 | 0  0 | 0  0 | 0  0 |  1  1 | …
    instance       7  2 | 9  0 | 4  1 | 3  8 | 6  5 |  2  4 | …      a new order each epoch
    micro-batch     0   |  1   |  2   |  3   |  4   |   5   | …
    rank            0   |  1   |  0   |  1   |  0   |   1   | …
    step            0          |  1          |  2           | …

Sample k of an epoch is a pure function of (seed, epoch, k). So the micro-batches are the same for
any number of ranks, which only own different ones, and a run resumes from its count of samples. How
many of them make a step may change over the run: it changes neither them nor whose they are.

The order is a pseudo-random permutation of [0, size): a Feistel network with a keyed hash as its
round function permutes the next larger power of two, and values outside the range are permuted
again until they fall inside ("cycle walking", Black and Rogaway 2002). It needs no memory, where an
index of 100 million instances would take 800 MB a rank and a pause each epoch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lert_ds.errors import ConfigError

ROUNDS = 6
"""Even, so that the halves of an uneven split come back to their places; 4 already suffice to look
random (Luby and Rackoff 1988) where the halves are large."""

Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]


class Samples(NamedTuple):
    """Some instances in the order of their use; both arrays are int64 [samples]."""

    epochs: Integers
    """How often the corpus had been gone through before."""
    indices: Integers
    """Places in the corpus."""


class MicroBatch(NamedTuple):
    """One micro-batch of a training."""

    number: int
    """Its number in the whole training, over all ranks: it seeds what the step draws."""
    samples: Samples
    """What it holds."""


def shuffled(positions: npt.ArrayLike, size: int, seed: int) -> Samples:
    """Return the instances that the samples at `positions` are, in a corpus of `size` instances.

    Args:
        positions: counts of samples since the start of the training, [samples].
        size: instances of the corpus, 1 or more.
        seed: in [0, 2^64).
    """
    places = np.atleast_1d(np.asarray(positions, dtype=np.uint64))
    epochs, values = np.divmod(places, np.uint64(size))
    keys = _hash(_hash(np.array([seed], dtype=np.uint64)) + epochs)
    bits = (size - 1).bit_length()
    values = _permute(values, keys, bits)
    while len(outside := np.flatnonzero(values >= size)):
        values[outside] = _permute(values[outside], keys[outside], bits)
    return Samples(epochs.astype(np.int64), values.astype(np.int64))


def _permute(values: Unsigned, keys: Unsigned, bits: int) -> Unsigned:
    """Return where a Feistel network moves `values` of [0, 2^bits)."""
    left_bits = bits // 2
    right_bits = bits - left_bits
    left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
    for number in range(ROUNDS):
        # The halves change places: what is hashed now has left_bits in every second round.
        within = np.uint64((1 << (right_bits if number % 2 else left_bits)) - 1)
        tweak = np.uint64(number << 56)
        left, right = right, left ^ (_hash(right ^ keys ^ tweak) & within)
    return (left << np.uint64(right_bits)) | right


def _hash(values: Unsigned) -> Unsigned:
    """Return 64 well mixed bits for each value: the output function of SplitMix64.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one rank, without end.

    `batch_size` must be a multiple of `micro_batch_size * world_size`; where the batch grows over
    the run, each of them, and any of them does.
    """

    corpus_size: int
    """Instances of the corpus."""
    seed: int
    batch_size: int
    """Instances a step, over all ranks."""
    micro_batch_size: int
    """Instances that one rank takes at a time."""
    rank: int = 0
    world_size: int = 1
    start: int = 0
    """Samples that the training has consumed already, over all ranks; need be no multiple of
    `batch_size`, which may have changed since: the first step begins at just that sample."""

    def __post_init__(self) -> None:
        assert self.batch_size % (self.micro_batch_size * self.world_size) == 0
        assert self.corpus_size > 0
        assert 0 <= self.rank < self.world_size
        assert self.start >= 0

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of this rank's micro-batches.

        Rank r takes the micro-batches r, r + world_size, … of each step; as a step has a multiple
        of world_size, that is every world_size-th micro-batch from r on.
        """
        number = self.start // self.micro_batch_size + self.rank
        while True:
            yield number
            number += self.world_size

    def first_sample(self, number: int) -> int:
        """Return the place of the first sample of micro-batch `number` in the whole training."""
        return number * self.micro_batch_size + self.start % self.micro_batch_size

    def samples(self, number: int) -> Samples:
        """Return what micro-batch `number` holds, on whatever rank."""
        first = self.first_sample(number)
        positions = np.arange(first, first + self.micro_batch_size, dtype=np.uint64)
        return shuffled(positions, self.corpus_size, self.seed)

    def __iter__(self) -> Iterator[MicroBatch]:
        for number in self.numbers():
            yield MicroBatch(number, self.samples(number))


def solve_micro_batch_size(
    batch_size: int, largest: int, world_size: int, warmup: Sequence[int] = ()
) -> int:
    """Return the largest micro-batch up to `largest` that deals a global batch evenly.

    The batch is science and stays; how many processes share it is the machine's, and may change
    when a run is resumed. The sizes that it has in a `warmup` are dealt by the same micro-batch,
    so that a run has one shape.

    Raises:
        ConfigError: a batch is no multiple of the processes; names what would be.
    """
    whole = math.gcd(batch_size, *warmup)
    fewer = next(n for n in range(world_size, 0, -1) if whole % n == 0)
    for size in (batch_size, *warmup):
        if size % world_size:
            below = size // world_size * world_size
            nearest = f"{below} or {below + world_size}" if below else str(world_size)
            if size == batch_size:
                key = "train.batch_size"
                told = f"{key} = {size}"
                change = f"{key} ="
            else:
                told = f"train.batch_warmup has a batch of {size} instances, which"
                change = "it to"
            raise ConfigError(
                f"{told} is no multiple of {world_size} processes; set {change} {nearest}, or "
                f"start {fewer} process{'es' if fewer > 1 else ''}"
            )
    share = whole // world_size
    return next(size for size in range(min(largest, share), 0, -1) if share % size == 0)


def in_order(size: int, micro_batch_size: int, rank: int, world_size: int) -> list[range]:
    """Return the instances of each evaluation batch of one rank.

    Over all ranks each of `size` instances comes once. All ranks get the same number of batches,
    since under ZeRO-3 a forward pass needs them all; so the last ranges of some may be empty.
    """
    batches = -(-size // micro_batch_size)
    rounds = -(-batches // world_size)
    firsts = [(turn * world_size + rank) * micro_batch_size for turn in range(rounds)]
    return [range(min(first, size), min(first + micro_batch_size, size)) for first in firsts]
