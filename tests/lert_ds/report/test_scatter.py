"""Charts: points where they belong, round axes, names that stand apart, all escaped."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from lert_ds.report.scatter import Point, Scale, scatter

EVIL = "</text><script>alert(1)</script>&\"'"


def dots(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_nothing_without_points() -> None:
    assert scatter([], "x", "y") == ""


def test_places_follow_the_values() -> None:
    points = [Point("a", 0, 1.0, 5.0), Point("b", 1, 10.0, 6.0), Point("c", 9, 100.0, 5.5)]
    svg = scatter(points, "MiB", "loss")
    ElementTree.fromstring(svg)
    (ax, ay), (bx, by), (cx, cy) = dots(svg)
    assert bx - ax == pytest.approx(cx - bx, abs=0.2)  # logarithmic
    assert cy == pytest.approx((ay + by) / 2, abs=0.2)  # linear, up is more
    assert by < cy < ay
    assert re.findall(r'<g class="c(\d)"', svg) == ["0", "1", "1"]
    assert "MiB</text>" in svg
    assert ">10</text>" in svg


@pytest.mark.parametrize("values", [(3.0, 3.0), (0.0, 0.0), (5.59, 5.61), (1e-9, 1e9), (-2, 7)])
def test_axes_have_a_few_round_values_within(values: tuple[float, float]) -> None:
    scale = Scale(values, 0, 100)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 6
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert all(0 <= scale(tick) <= 100 for tick in ticks)
    assert scale(values[0]) <= scale(values[1])


def test_logarithmic_axes_say_1_2_5() -> None:
    ticks = Scale([math.log10(0.9), math.log10(60)], 0, 100).logarithmic_ticks()
    assert [round(10**tick, 6) for tick in ticks] == [1, 2, 5, 10, 20, 50]
    assert len(Scale([0, 12], 0, 100).logarithmic_ticks()) <= 8
    assert len(Scale([0.31, 0.32], 0, 100).logarithmic_ticks()) == 2  # none of them lies between


def test_names_stand_apart_and_are_escaped() -> None:
    points = [Point(f"model {EVIL}{n}", n, 1.0 + n / 1000, 5.0) for n in range(4)]
    svg = scatter([*points, Point("far", 4, 9.0, 4.0)], f"x{EVIL}", f"y{EVIL}")
    assert "<script" not in svg
    tree = ElementTree.fromstring(svg)
    lines = [float(text.attrib["y"]) for text in tree.iter("text") if text.get("class") == "label"]
    assert len(lines) == 5
    together = sorted(lines[:4])
    assert min(b - a for a, b in itertools.pairwise(together)) > 11
    assert f"{points[0].name}: 1, 5" in [title.text for title in tree.iter("title")]
