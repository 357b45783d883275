"""Collectives: the volume that no algorithm undercuts, latency, and the slower of two ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.errors import ConfigError
from lert_ds.plan import network
from lert_ds.plan.hardware import known
from lert_ds.plan.network import Network, network_of, parse_interconnect

POWERS = st.integers(0, 5).map(lambda exponent: 2**exponent)


def ring(gpus: int, per_node: int = 8, within: float = 100.0, between: float = 10.0) -> Network:
    return Network(gpus, per_node, within, between, collective_seconds=0.0)


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("400gbit", 50e9), ("8x400gbit", 400e9), ("100Gbit", 12.5e9), ("1.5gbyte", 1.5e9)],
)
def test_an_interconnect_is_read(text: str, bytes_per_second: float) -> None:
    assert parse_interconnect(text) == pytest.approx(bytes_per_second)


@pytest.mark.parametrize(
    "text", ["", "400", "fast", "0gbit", "0x400gbit", "8x", "400 gbit", "-1gbit"]
)
def test_an_interconnect_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--interconnect .*8x400gbit"):
        parse_interconnect(text)


def test_one_device_sends_nothing() -> None:
    assert ring(1).all_reduce(1e9) == ring(1).all_gather(1e9) == 0.0


def test_two_devices_in_a_node_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "WITHIN_LATENCY_SECONDS", 0.0)
    # Each sends half of 1,000 bytes in a reduce-scatter, half in the all-gather, at 100 a second.
    assert ring(2).all_reduce(1000) == pytest.approx(10.0)
    assert ring(2).all_gather(1000) == pytest.approx(5.0)


def test_between_nodes_the_slower_way_counts() -> None:
    # 2 nodes of 8: 7/8 of 1,000 bytes at 100 a second within, 1/2 of them at 10 between: 50 s.
    assert ring(16).all_gather(1000) == pytest.approx(50.0, rel=1e-5)
    assert ring(16, between=1e9).all_gather(1000) == pytest.approx(8.75, rel=1e-4)


@given(POWERS, st.floats(1, 1e12), st.floats(1, 100))
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(
    gpus: int, size: float, messages: float
) -> None:
    one = ring(gpus)
    assert one.all_reduce(size, messages) <= 2 * one.all_gather(size, messages) * (1 + 1e-9)
    assert one.all_reduce(size) >= 2 * one._bandwidth(size) * (1 - 1e-9) or gpus == 1


@given(POWERS, st.floats(1, 1e12))
def test_more_devices_and_more_bytes_never_take_less(gpus: int, size: float) -> None:
    assert ring(2 * gpus).all_reduce(size) >= ring(gpus).all_reduce(size)
    assert ring(2 * gpus).all_reduce(2 * size) >= ring(2 * gpus).all_reduce(size)


def test_many_messages_cost_their_latency() -> None:
    joined = Network(64, 8, 1e11, 1e11, collective_seconds=1e-3)
    assert joined.all_reduce(1e6, 11) - joined.all_reduce(1e6, 1) > 10e-3


def test_a_tree_spares_latency_on_many_nodes() -> None:
    many = Network(8192, 8, 1e15, 1e15, collective_seconds=0.0)
    assert many.all_reduce(8.0) < many.all_gather(8.0) / 10


def test_a_network_of_devices() -> None:
    joined = network_of(known("h100"), 64, 8, "8x400gbit")
    assert (joined.nodes, joined.per_node) == (8, 8)
    assert joined.within == pytest.approx(450e9 * 0.8)
    assert joined.between == pytest.approx(400e9 * 0.85)


@pytest.mark.parametrize(
    ("gpus", "per_node", "interconnect", "says"),
    [
        (0, 8, None, "--gpus 0: must be 1 or more"),
        (8, 0, None, "--gpus-per-node 0"),
        (12, 8, "400gbit", "--gpus 12: no multiple of the 8"),
        (16, 8, None, "--gpus 16 are 2 nodes of 8: .*--interconnect"),
        (16, 8, "slow", "--interconnect slow"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    gpus: int, per_node: int, interconnect: str | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        network_of(known("h100"), gpus, per_node, interconnect)
