"""The random numbers of one instance: pure functions of the raw bits of Philox, and of no library.

NumPy keeps the bits of a bit generator from version to version, but not what its `Generator` makes
of them; so this is made of them here, as `masking.cpp` does too.
"""

import numpy as np
import numpy.typing as npt

MASKING_STREAM = 1
"""Second key of the generators that mask, so that no other use of the seed meets their numbers."""


class Draws:
    """A stream of draws; each call takes the bits that follow those of the last."""

    def __init__(self, seed: int, epoch: int, index: int) -> None:
        """Take the numbers of instance `index` in `epoch`: nothing else decides them.

        Philox is counter-based: instance and epoch are the upper words of the counter, so each gets
        2^128 numbers of its own from the key that the seed is. All three lie in [0, 2^64).
        """
        counter = np.array([0, 0, index, epoch], dtype=np.uint64)
        key = np.array([seed, MASKING_STREAM], dtype=np.uint64)
        self._bits = np.random.Philox(counter=counter, key=key)

    def shares(self, count: int) -> npt.NDArray[np.float64]:
        """Return float64 [count] in [0, 1): the upper 53 bits of each."""
        return (self._bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, limit: int, count: int) -> npt.NDArray[np.int64]:
        """Return int64 [count] in [0, limit), limit up to 2^32: the upper 32 bits times limit."""
        upper = self._bits.random_raw(count) >> np.uint64(32)
        return (upper * np.uint64(limit) >> np.uint64(32)).astype(np.int64)

    def order(self, count: int) -> npt.NDArray[np.int64]:
        """Return a permutation, int64 [count]: places in the order of their bits."""
        return self._bits.random_raw(count).argsort(kind="stable")
