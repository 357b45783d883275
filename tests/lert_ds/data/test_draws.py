import numpy as np
import pytest

from lert_ds.data.draws import MASKING_STREAM, Draws


def test_shares_are_numpy_s_of_the_same_bits() -> None:
    bits = np.random.Philox(counter=[0, 0, 9, 2], key=[7, MASKING_STREAM])
    np.testing.assert_array_equal(Draws(7, 2, 9).shares(50), np.random.Generator(bits).random(50))


def test_golden_draws() -> None:
    # A change here changes every run that is resumed.
    draws = Draws(2**64 - 1, 3, 5)
    assert draws.below(1000, 5).tolist() == [433, 480, 458, 475, 191]
    assert draws.order(6).tolist() == [4, 3, 1, 2, 0, 5]


@pytest.mark.parametrize("limit", [1, 2, 3, 21_123, 2**32])
def test_numbers_below_a_limit_are_as_likely(limit: int) -> None:
    found = Draws(0, 0, 0).below(limit, 20_000)
    assert found.min() >= 0
    assert found.max() < limit
    assert found.mean() == pytest.approx((limit - 1) / 2, rel=0.02)
    parts = np.bincount(found * 10 // limit, minlength=10) if limit >= 10 else np.bincount(found)
    assert parts.max() < 1.15 * parts.min()


def test_every_place_comes_first_as_often() -> None:
    draws = Draws(1, 0, 0)
    orders = [draws.order(5) for _ in range(3000)]
    assert all(sorted(order.tolist()) == [0, 1, 2, 3, 4] for order in orders)
    assert np.bincount([order[0] for order in orders]).min() > 500


def test_each_call_goes_on_where_the_last_ended() -> None:
    parts, whole = Draws(1, 2, 3), Draws(1, 2, 3)
    together = np.concatenate([parts.shares(3), parts.shares(0), parts.shares(7)])
    np.testing.assert_array_equal(together, whole.shares(10))
