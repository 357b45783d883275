from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds import config
from lert_ds.errors import ConfigError
from lert_ds.train.batch_schedule import BatchSchedule, Phase

EXAMPLE: dict[str, Any] = {
    "batch_size": 1024,
    "batch_warmup": [[0, 256], [10_000, 512], [20_000, 1024]],
    "lengths": [[0, 128], [1_800_000, 512]],
}


def schedule(**tree: Any) -> BatchSchedule:
    return config.parse(BatchSchedule, tree, "test")


@st.composite
def schedules(draw: st.DrawFn) -> BatchSchedule:
    def stages(values: st.SearchStrategy[int]) -> list[list[int]]:
        steps = sorted(draw(st.sets(st.integers(1, 60), max_size=4)))
        return [[step, draw(values)] for step in [0, *steps]]

    batches = stages(st.integers(1, 9))
    lengths = stages(st.sampled_from([8, 16, 32]))
    return schedule(
        batch_size=batches[-1][1],
        batch_warmup=batches if draw(st.booleans()) else [],
        lengths=lengths if draw(st.booleans()) else [],
    )


def test_the_example_of_the_module() -> None:
    assert schedule(**EXAMPLE).phases(2_000_000) == [
        Phase(0, 10_000, 256, 128),
        Phase(10_000, 20_000, 512, 128),
        Phase(20_000, 1_800_000, 1024, 128),
        Phase(1_800_000, 2_000_000, 1024, 512),
    ]


def test_a_plain_run_is_one_phase() -> None:
    plain = schedule(batch_size=8)
    assert plain.phases(10) == [Phase(0, 10, 8, None)]
    assert plain.phases(0) == []
    assert (plain.batch_sizes, plain.batch_size_at(3), plain.length_at(3)) == ([8], 8, None)
    assert plain.length_borders(5, 40) == []


@given(schedules(), st.integers(0, 80))
def test_samples_are_the_sum_of_the_batches(plan: BatchSchedule, step: int) -> None:
    expected = sum(plan.batch_size_at(earlier) for earlier in range(step))
    assert plan.samples_before(step) == expected
    phases = plan.phases(step)
    assert [n for phase in phases for n in range(phase.first, phase.stop)] == list(range(step))
    for phase in phases:
        for one in range(phase.first, phase.stop):
            assert phase.batch_size == plan.batch_size_at(one)
            assert phase.length == plan.length_at(one)


@given(schedules(), st.integers(0, 500))
def test_as_many_steps_as_the_samples_take(plan: BatchSchedule, samples: int) -> None:
    steps = plan.steps_for(samples)
    assert plan.samples_before(steps) >= samples
    assert steps == 0 or plan.samples_before(steps - 1) < samples


@given(schedules(), st.integers(0, 70), st.integers(0, 300))
def test_a_length_holds_from_the_first_sample_of_its_step(
    plan: BatchSchedule, step: int, samples: int
) -> None:
    """Also where the samples so far are not those of the schedule: the batch was another once."""
    borders = plan.length_borders(step, samples)
    if not plan.lengths:
        assert borders == []
        return
    place = samples
    for one in range(step, step + 90):
        held = [length for first, length in borders if first <= place][-1]
        assert held == plan.length_at(one)
        place += plan.batch_size_at(one)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 0, "batch_warmup": []}, "batch_size = 0: must be 1 or more"),
        ({"batch_size": 2048}, "batch_warmup ends with 1024 instances but batch_size = 2048; let"),
        ({"lengths": [[5, 128]]}, r"lengths = \[\[5, 128\]\]: its first pair must say .* step 0"),
        ({"lengths": [[0, 128], [0, 512]]}, "step 0 does not come after step 0"),
        ({"lengths": [[0, 0]]}, "the second number of a pair must be 1 or more"),
        ({"lengths": [128, 512]}, "lengths.0 = 128"),
        ({"batch_warmup": [[0, 256, 1], [5, 1024]]}, "batch_warmup.0"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        schedule(**EXAMPLE | changes)


def test_a_schedule_comes_back_from_its_record() -> None:
    plan = schedule(**EXAMPLE)
    assert config.parse(BatchSchedule, config.dump(plan), "record") == plan
