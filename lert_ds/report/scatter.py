"""Named points → a chart as SVG that needs no script: a value over a logarithmic one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from lert_ds.report.summary import short_number

COLOURS = 8
"""In the palette of the page; the ninth point has the colour of the first."""
_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 24, 44
_LONGEST_NAME = 28
_CHARACTER_WIDTH, _LINE_HEIGHT = 6.5, 11.5
"""Of names, in pixels, about."""


@dataclass(frozen=True)
class Point:
    """What a chart shows of one thing."""

    name: str
    place: int
    """Among all things, for its colour."""
    x: float
    """Above 0."""
    y: float


class _Box(NamedTuple):
    """Where a name stands."""

    left: float
    right: float
    line: float

    def meets(self, other: "_Box") -> bool:
        apart = self.right < other.left or other.right < self.left
        return not apart and abs(self.line - other.line) < _LINE_HEIGHT


class Scale:
    """Values to pixels, with a tenth of air at each end."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        """Let `values`, at least one, fill the pixels from `start` to `end`."""
        lowest, highest = min(values), max(values)
        air = 0.1 * (highest - lowest) or 0.1 * abs(highest) or 0.1
        self.low, self.high = lowest - air, highest + air
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return at most `most` round values to write at the axis: multiples of 1, 2 or 5 · 10ⁿ."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) < most)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(number * step, 12) for number in range(first, last + 1)]

    def logarithmic_ticks(self) -> list[float]:
        """Return values 1, 2, 5 · 10ⁿ to write at an axis of decimal logarithms."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        known = (math.log10(mantissa) + power for power in powers for mantissa in (1, 2, 5))
        found = [value for value in known if self.low <= value <= self.high]
        thinned = found[:: -(-len(found) // 8)] if found else []
        return thinned if len(thinned) > 1 else [self.low, self.high]


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Return the chart of `points`, or nothing where there are none.

    Args:
        points: One for each thing that both values are known of.
        x_title: Of the horizontal, logarithmic axis.
        y_title: Of the vertical axis.
    """
    if not points:
        return ""
    xs = Scale([math.log10(point.x) for point in points], _LEFT, _WIDTH - _RIGHT)
    ys = Scale([point.y for point in points], _HEIGHT - _BOTTOM, _TOP)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts = [
        *(_rule(ys(value), value) for value in ys.ticks()),
        *(
            _text(xs(v), _HEIGHT - _BOTTOM + 16, short_number(10**v))
            for v in xs.logarithmic_ticks()
        ),
        _text(middle, _HEIGHT - 8, x_title),
        _text(4, 12, y_title, anchor="start"),
    ]
    taken: list[_Box] = []
    for point in points:
        parts.append(_dot(point, xs(math.log10(point.x)), ys(point.y), middle, taken))
    label = escape(f"{y_title} over {x_title}: see the table")
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _rule(y: float, value: float) -> str:
    line = f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(_LEFT - 6, y + 4, short_number(value), anchor="end")


def _dot(point: Point, x: float, y: float, middle: float, taken: list[_Box]) -> str:
    """Return a dot and its name, which goes where no other is; `taken` grows by its place."""
    anchor, shift = ("end", -8) if x > middle else ("start", 8)
    said = f"{point.name}: {short_number(point.x)}, {short_number(point.y)}"
    name = point.name
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    width = _CHARACTER_WIDTH * len(shown)
    left = x + shift - (width if anchor == "end" else 0)
    for line in (-8, 16, -20, 28, -32, 40, 52, 64, 76):
        box = _Box(left, left + width, y + line)
        if not any(box.meets(other) for other in taken):
            break
    taken.append(box)
    return (
        f'<g class="c{point.place % COLOURS}"><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5">'
        f"<title>{escape(said)}</title></circle>"
        f"{_text(x + shift, box.line, shown, anchor=anchor, kind='label')}</g>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
