"""metrics.jsonl, the reports of a training, one JSON object a line → curves, a clock and events.

    {"kind": "train", "step": 10, "samples": 640, "time": 1.7e9, "mlm/loss": 9.1, "mfu": 0.4}
    {"kind": "valid", "step": 10, "samples": 640, "time": 1.7e9, "mlm/loss": 9.0}
    {"kind": "event", "step": 10, "time": 1.7e9, "message": "checkpoint step-10"}

Every number of a line that is not an event is a point of the curve (metric, kind).
"""

import json
import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lert_ds.errors import UserError

_PLACE_KEYS = frozenset({"kind", "step", "samples", "tokens", "time", "message"})
_CLOCKS = ("samples", "tokens", "time")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The finite values of one metric; `steps` [n] rise strictly, `values` [n] belong to them."""

    steps: Floats
    values: Floats


@dataclass(frozen=True)
class Event:
    """Something that happened once: at which step and unix time, where known."""

    step: int | None
    time: float | None
    message: str


@dataclass(frozen=True)
class Metrics:
    """What a metrics file tells."""

    curves: Mapping[str, Mapping[str, Curve]]
    """metric → kind ("train", "valid", …) → curve."""
    clock: Mapping[str, Curve]
    """"samples", "tokens", "time" (unix seconds) → their value at each reported step."""
    events: Sequence[Event]
    started: float | None
    """Unix time of the earliest line."""
    ended: float | None
    """Unix time of the latest line."""
    notes: Sequence[str]
    """What was left out or replaced while reading, a sentence each."""


@dataclass
class _Series:
    """A growing curve that can be cut back; arrays of doubles keep a million reports small."""

    steps: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: float) -> None:
        if self.steps and self.steps[-1] == step:
            self.values[-1] = value
        else:
            self.steps.append(step)
            self.values.append(value)

    def cut_after(self, step: int) -> int:
        """Forget the points after `step` and return how many there were."""
        keep = bisect_right(self.steps, step)
        count = len(self.steps) - keep
        del self.steps[keep:], self.values[keep:]
        return count

    def curve(self) -> Curve:
        return Curve(np.array(self.steps), np.array(self.values))


@dataclass
class _Reader:
    """Collects the lines of one metrics file, oldest first."""

    path: Path
    series: dict[tuple[str, str], _Series] = field(default_factory=dict)
    clock: dict[str, _Series] = field(default_factory=lambda: {n: _Series() for n in _CLOCKS})
    events: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    last_step: int = -1
    times: list[float] = field(default_factory=list)
    """The earliest and the latest."""
    not_finite: Counter[str] = field(default_factory=Counter)
    not_number: Counter[str] = field(default_factory=Counter)

    def add(self, report: Mapping[str, Any], line: int) -> None:
        where = f"{self.path}, line {line}"
        kind, step = report.get("kind"), _step(report.get("step"))
        if not isinstance(kind, str):
            raise UserError(f'{where}: a report needs "kind", a text; correct or delete the line')
        time = json_number(report.get("time"))
        if time is not None and math.isfinite(time):
            self.times = [min([*self.times, time]), max([*self.times, time])]
        if kind == "event":
            if step is None and self.last_step >= 0:
                step = self.last_step
            self.events.append(Event(step, time, _message(report)))
            return
        if step is None:
            raise UserError(
                f'{where}: "step" = {json.dumps(report.get("step"))} is no whole number from 0; '
                "correct or delete the line"
            )
        self._add_values(kind, step, report)

    def _add_values(self, kind: str, step: int, report: Mapping[str, Any]) -> None:
        if step < self.last_step:
            self._resume_from(step)
        self.last_step = step
        for name in _CLOCKS:
            value = json_number(report.get(name))
            if value is not None and math.isfinite(value):
                self.clock[name].add(step, value)
        for metric, given in report.items():
            if metric in _PLACE_KEYS:
                continue
            value = json_number(given)
            if given is not None and value is None:
                self.not_number[metric] += 1
            elif value is None or not math.isfinite(value):
                self.not_finite[f"{kind} {metric}"] += 1
            else:
                self.series.setdefault((metric, kind), _Series()).add(step, value)

    def _resume_from(self, step: int) -> None:
        """Forget what was reported after `step`: a resumed training did it again."""
        everything = [*self.series.values(), *self.clock.values()]
        for series in everything:
            series.cut_after(step)
        self.notes.append(
            f"the training went on from before step {step:,} after it had reached step "
            f"{self.last_step:,}: the later reports replace the earlier ones"
        )

    def metrics(self) -> Metrics:
        return Metrics(
            curves=self._curves(),
            clock={name: series.curve() for name, series in self.clock.items() if series.steps},
            events=tuple(self.events),
            started=self.times[0] if self.times else None,
            ended=self.times[-1] if self.times else None,
            notes=(*self.notes, *self._left_out()),
        )

    def _curves(self) -> dict[str, dict[str, Curve]]:
        found: dict[str, dict[str, Curve]] = {}
        for (metric, kind), series in self.series.items():
            if series.steps:
                found.setdefault(metric, {})[kind] = series.curve()
        return found

    def _left_out(self) -> list[str]:
        finite = [f"{name}: {n:,}" for name, n in self.not_finite.items()]
        numbers = [f"{name}: {n:,}" for name, n in self.not_number.items()]
        notes = [f"values that are not finite are left out ({', '.join(finite)})"] if finite else []
        if numbers:
            notes.append(f"values that are no numbers are left out ({', '.join(numbers)})")
        return notes


def read_metrics(path: Path) -> Metrics:
    """Return what the metrics file at `path` tells; a line cut off at its end is noted.

    Where a step is lower than the one before it, a training was resumed: what was reported after
    that step is replaced by what follows.

    Raises:
        UserError: no such file, nothing in it, or a broken line that is not the last.
    """
    reader = _Reader(path)
    broken: tuple[int, str] | None = None
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                if broken is not None:
                    raise UserError(
                        f"{path}, line {broken[0]}: not a JSON object ({broken[1]}); "
                        "correct or delete the line"
                    )
                try:
                    reader.add(json_object(raw), line)
                except BrokenLineError as error:
                    broken = line, str(error)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: there is no such file; name the folder that a training wrote, "
            "after its first report"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that first") from error
    if broken is not None:
        reader.notes.append(
            f"the last line of {path.name} ({broken[0]:,}) is cut off and was left out: "
            "the training was killed, or is writing it"
        )
    if not reader.series and not reader.events:
        raise UserError(
            f"{path}: it holds no complete report; wait for the training's first report, "
            "or name another run"
        )
    return reader.metrics()


class BrokenLineError(Exception):
    """A line that is no JSON object: harmless at the end of the file, an error before it."""


def json_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that `raw` is.

    Raises:
        BrokenLineError: it is something else.
    """
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BrokenLineError(str(error)) from error
    if not isinstance(tree, dict):
        raise BrokenLineError(f"it is a {type(tree).__name__}")
    return tree


def _step(value: object) -> int | None:
    number = None if isinstance(value, bool) else json_number(value)
    return int(number) if number is not None and number >= 0 and number.is_integer() else None


def json_number(value: object) -> float | None:
    """Return a JSON number as a float, infinite where it is too large; None for anything else."""
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _message(report: Mapping[str, Any]) -> str:
    if isinstance(message := report.get("message"), str):
        return message
    rest = {name: value for name, value in report.items() if name not in ("kind", "step", "time")}
    return json.dumps(rest, ensure_ascii=False)
