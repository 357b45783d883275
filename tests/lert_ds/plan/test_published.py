"""The model against what others have measured: as near as `docs/plan.md` says, and no worse."""

import math
import re
from pathlib import Path

import pytest

from lert_ds.plan.published import LARGE, RECORDS, Point, Record, points

POINTS = points()
BOUND = {
    "DeepSpeed 2020": 0.10,
    "NVIDIA 2020": 0.32,
    "NVIDIA 2022": 0.14,
    "MosaicML 2023": 0.15,
    "MLPerf 4.0": 0.45,
}
"""The largest error of each source that the page tells of."""


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.source}: {point.name}")
def test_a_published_training_is_predicted_within_what_the_page_says(point: Point) -> None:
    assert abs(point.error) < BOUND[point.source]


def test_the_bounds_are_not_slack() -> None:
    for source, bound in BOUND.items():
        worst = max(abs(point.error) for point in POINTS if point.source == source)
        assert worst > bound - 0.06, (source, worst)


def test_one_gpu_is_right_on_the_whole() -> None:
    errors = [math.log(1 + point.error) for point in POINTS if point.work.processes == 1]
    assert len(errors) == 8
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.10
    assert abs(sum(errors) / len(errors)) < 0.03


def test_figures_are_those_of_the_sources() -> None:
    # DeepSpeed tells its two both ways: 64 TFLOP/s are 272 instances a second, 53 are 52.
    for point, tera in zip(POINTS[:2], (64, 53), strict=True):
        from lert_ds.arithmetic import flops_per_token

        flops = flops_per_token(LARGE, point.work.length, 0.156) * point.work.length
        assert point.measured * flops / 1e12 == pytest.approx(tera, rel=0.03)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record.gpus))
def test_deepspeeds_record_is_predicted_but_for_what_grows_with_the_gpus(record: Record) -> None:
    assert 0.82 < record.predicted_minutes / record.measured_minutes < 1.0


def test_deepspeeds_record_is_nearer_on_fewer_gpus() -> None:
    ratios = [record.predicted_minutes / record.measured_minutes for record in RECORDS]
    assert ratios == sorted(ratios, reverse=True)


def test_the_page_has_these_figures() -> None:
    page = (Path(__file__).parents[3] / "docs" / "plan.md").read_text("utf-8")
    rows = {tuple(re.split(r"\s*\|\s*", line.strip("| "))) for line in page.splitlines()}
    for point in POINTS:
        star = " *" if point.work.processes == 1 else ""
        figures = (f"{point.predicted:,.0f}", f"{point.measured:,.0f}", f"{point.error:+.0%}")
        assert (point.source, point.name + star, *figures) in rows
    for record in RECORDS:
        predicted, measured = record.predicted_minutes, record.measured_minutes
        error = f"{predicted / measured - 1:+.0%}"
        assert (f"{record.gpus:,}", f"{predicted:,.0f}", f"{measured:,}", error) in rows
