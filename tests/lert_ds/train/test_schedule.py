"""The learning rate, to the last digit, at the steps where something changes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lert_ds.train.schedule import ScheduleConfig, multiplier

STEPS = 1000


def rates(config: ScheduleConfig, *steps: int) -> list[float]:
    return [multiplier(config, step, STEPS) for step in steps]


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant"])
def test_the_warm_up_is_linear_from_0(kind: str) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=100)
    assert rates(config, 0, 1, 50, 99) == [0.0, 0.01, 0.5, 0.99]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # steps:    100  550  900   999    1000  2000
        ("linear", [0.9, 0.45, 0.1, 0.001, 0.0, 0.0]),
        (
            "cosine",
            [
                1.0,
                0.5,
                0.5 * (1 + math.cos(math.pi * 800 / 900)),
                0.5 * (1 + math.cos(math.pi * 899 / 900)),
                0.0,
                0.0,
            ],
        ),
        ("wsd", [1.0, 1.0, 1.0, 0.01, 0.0, 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_after_the_warm_up(kind: str, expected: list[float]) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=100)
    assert rates(config, 100, 550, 900, 999, 1000, 2000) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("linear", [0.55, 0.1, 0.1]), ("cosine", [0.55, 0.1, 0.1]), ("wsd", [1.0, 0.1, 0.1])],
)
def test_the_end_is_the_final_share(kind: str, expected: list[float]) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=0, final_share=0.1)
    assert rates(config, 500, 1000, 1500) == pytest.approx(expected, abs=1e-12)


def test_the_decay_of_wsd_has_its_share_of_all_steps() -> None:
    config = ScheduleConfig(kind="wsd", warmup_steps=100, decay_share=0.2)
    assert rates(config, 100, 799, 800, 900, 1000) == pytest.approx([1, 1, 1, 0.5, 0])


def test_without_a_warm_up_the_first_update_has_the_full_rate() -> None:
    for kind in ("linear", "cosine", "wsd", "constant"):
        assert multiplier(ScheduleConfig(kind=kind, warmup_steps=0), 0, STEPS) == 1.0


def test_a_run_shorter_than_its_warm_up_does_not_divide_by_zero() -> None:
    for kind in ("linear", "cosine", "wsd", "constant"):
        config = ScheduleConfig(kind=kind, warmup_steps=STEPS)
        assert rates(config, STEPS - 1)[0] == pytest.approx(0.999)
        assert math.isfinite(rates(config, STEPS)[0])


def test_the_published_schedule_of_lert() -> None:
    # src/optimization.py of ymcui/LERT: a polynomial decay of power 1 from step 0, and below
    # 10,000 steps the warm-up in its place; 1e-4, 2,000,000 steps.
    def rate(step: int) -> float:
        return 1e-4 * multiplier(ScheduleConfig(), step, 2_000_000)

    expected = {
        0: 0.0,
        1: 1e-8,
        5_000: 5e-5,
        9_999: 9.999e-5,
        10_000: 9.95e-5,
        1_000_000: 5e-5,
        1_999_999: 5e-11,
        2_000_000: 0.0,
    }
    assert {step: rate(step) for step in expected} == pytest.approx(expected, rel=1e-9)


@given(
    st.sampled_from(["linear", "cosine", "wsd", "constant"]),
    st.integers(0, 200),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 1500),
)
def test_the_factor_stays_between_0_and_1_and_never_rises_after_the_warm_up(
    kind: str, warmup: int, decay: float, final: float, step: int
) -> None:
    config = ScheduleConfig(
        kind=kind,  # type: ignore[arg-type]
        warmup_steps=warmup,
        decay_share=decay,
        final_share=final,
    )
    here, later = rates(config, step, step + 1)
    assert 0.0 <= here <= 1.0
    if step >= warmup:
        assert later <= here
        assert here >= min(final, 1.0) - 1e-12
    elif step + 1 < warmup:
        assert later > here


@pytest.mark.parametrize(
    ("key", "value"),
    [("warmup_steps", -1), ("final_share", 1.5), ("final_share", -0.1), ("decay_share", 0.0),
     ("decay_share", 1.1)],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_their_key(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{key} = {value}: must be"):
        ScheduleConfig(**{key: value})  # type: ignore[arg-type]


def test_a_warm_up_can_be_a_share_of_all_steps() -> None:
    config = ScheduleConfig(warmup_share=0.1)
    assert config.warmup_of(57) == 5
    same = ScheduleConfig(warmup_steps=5)
    assert [multiplier(config, k, 57) for k in range(57)] == [
        multiplier(same, k, 57) for k in range(57)
    ]
    with pytest.raises(ValueError, match=r"warmup_share = 1\.0"):
        ScheduleConfig(warmup_share=1.0)
