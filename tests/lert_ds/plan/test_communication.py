"""What each ZeRO stage sends in DeepSpeed, and how much of it a pass hides."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.plan.communication import ahead, behind, buckets, communication
from lert_ds.plan.network import Network
from lert_ds.plan.workload import Workload

Large = Callable[..., Workload]
P = 325_600_000
PIECES = st.lists(st.floats(0.001, 10), min_size=1, max_size=6)


def sent(work: Workload) -> float:
    """Return what a process sends, in bytes a parameter, over (n - 1) / n."""
    joined = Network(8, 8, 1e11, 0.0, 0.0)
    said = communication(work, joined, 0.1, 0.2, overlaps=True)
    return said.sent_bytes / work.parameters * 8 / 7


@pytest.mark.parametrize(
    ("stage", "accumulation", "bytes_a_parameter"),
    [(0, 1, 4), (0, 4, 4), (1, 1, 6), (1, 4, 6), (2, 1, 6), (2, 4, 18), (3, 1, 4), (3, 4, 16)],
)
def test_volumes_of_the_stages_in_bf16(
    large: Large, stage: int, accumulation: int, bytes_a_parameter: float
) -> None:
    work = large(stage=stage, accumulation=accumulation)
    assert sent(work) == pytest.approx(bytes_a_parameter)


def test_in_fp32_it_is_twice_as_much(large: Large) -> None:
    for stage in range(4):
        fp32 = large(stage=stage, precision="fp32")
        assert sent(fp32) == pytest.approx(2 * sent(large(stage=stage)))


def test_reduced_to_their_owner_gradients_are_the_papers_volume(large: Large) -> None:
    assert sent(large(stage=1, whole_all_reduce=False)) == pytest.approx(4)


def test_weights_that_are_let_go_are_gathered_again(large: Large) -> None:
    assert sent(large(stage=3, accumulation=1, reuse_elements=P - 1)) == pytest.approx(6)


def test_one_process_sends_nothing(large: Large) -> None:
    alone = communication(large(processes=1), Network(1, 8, 1, 1, 1), 1, 1, overlaps=True)
    assert alone.sent_bytes == alone.exposed_seconds == alone.gradient_seconds == 0.0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nothing_is_hidden_where_nothing_overlaps(large: Large, stage: int) -> None:
    joined = Network(8, 8, 1e9, 0.0, 1e-5)
    said = communication(large(stage=stage), joined, 1.0, 2.0, overlaps=False)
    assert said.exposed_seconds == pytest.approx(said.gradient_seconds + said.weight_seconds)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("rate", [1e8, 1e10, 1e12])
def test_some_is_hidden_where_it_overlaps(large: Large, stage: int, rate: float) -> None:
    work, joined = large(stage=stage), Network(8, 8, rate, 0.0, 0.0)
    hidden = communication(work, joined, 1.0, 2.0, overlaps=True)
    shown = communication(work, joined, 1.0, 2.0, overlaps=False)
    assert hidden.exposed_seconds < shown.exposed_seconds
    assert hidden.sent_bytes == shown.sent_bytes
    off = communication(large(stage=stage, overlap=False), joined, 1.0, 2.0, overlaps=True)
    assert off.exposed_seconds == pytest.approx(shown.exposed_seconds)


def test_the_gather_after_the_update_is_never_hidden(large: Large) -> None:
    joined = Network(8, 8, 1e10, 0.0, 0.0)
    said = communication(large(), joined, 1e9, 1e9, overlaps=True)
    assert said.exposed_seconds >= said.weight_seconds


def test_the_last_bucket_is_not_hidden_by_a_long_pass() -> None:
    assert behind(100.0, [1.0, 1.0, 2.0]) == pytest.approx(2.0)
    assert ahead(100.0, [3.0, 1.0, 1.0]) == pytest.approx(3.0)


@given(st.floats(0.001, 100), PIECES)
def test_exposed_is_between_the_last_piece_and_all_of_them(
    seconds: float, pieces: list[float]
) -> None:
    late, total = behind(seconds, pieces), sum(pieces)
    assert pieces[-1] - 1e-9 <= late <= total + 1e-9
    assert late >= total - seconds - 1e-9
    assert ahead(seconds, pieces[::-1]) == pytest.approx(late, abs=1e-6)


@given(st.floats(1, 1e9), st.floats(1e6, 1e9))
def test_buckets_hold_everything(elements: float, largest: float) -> None:
    sizes = buckets(elements, largest)
    assert sum(sizes) == pytest.approx(elements)
    assert max(sizes) <= largest
