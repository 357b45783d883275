"""metrics.jsonl to curves: the later line wins, a cut-off end is noted, a broken line refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from lert_ds.errors import UserError
from lert_ds.report.metrics import Metrics, read_metrics


def read(folder: Path, *lines: dict[str, Any] | str) -> Metrics:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(text) + "\n", "utf-8")
    return read_metrics(folder / "metrics.jsonl")


def train(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "samples": 8 * step, "time": 100.0 + step, **values}


def points(metrics: Metrics, metric: str, kind: str = "train") -> list[tuple[float, float]]:
    curve = metrics.curves[metric][kind]
    return list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def test_numbers_become_curves_by_metric_and_kind(tmp_path: Path) -> None:
    metrics = read(
        tmp_path,
        train(1, **{"mlm/loss": 9.5, "mfu": 0.4}),
        train(2, **{"mlm/loss": 9.0}),
        {"kind": "valid", "step": 2, "time": 103.0, "mlm/loss": 9.2},
    )
    assert points(metrics, "mlm/loss") == [(1, 9.5), (2, 9.0)]
    assert points(metrics, "mlm/loss", "valid") == [(2, 9.2)]
    assert points(metrics, "mfu") == [(1, 0.4)]
    assert set(metrics.curves) == {"mlm/loss", "mfu"}
    assert metrics.clock["samples"].values.tolist() == [8, 16]
    assert (metrics.started, metrics.ended) == (101.0, 103.0)
    assert "tokens" not in metrics.clock
    assert metrics.notes == ()


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    metrics = read(
        tmp_path,
        train(10, loss=5.0),
        train(20, loss=4.0),
        {"kind": "valid", "step": 20, "loss": 4.5},
        train(30, loss=3.0),
        {"kind": "valid", "step": 30, "loss": 3.5},
        {"kind": "event", "step": 10, "message": "resumed from step-10"},
        train(20, loss=4.4),
        train(25, loss=2.5),
    )
    # Step 30 of the run that died is gone, in every kind; the line of 20 is the later one.
    assert points(metrics, "loss") == [(10, 5.0), (20, 4.4), (25, 2.5)]
    assert points(metrics, "loss", "valid") == [(20, 4.5)]
    assert metrics.clock["samples"].steps.tolist() == [10, 20, 25]
    assert "step 20" in metrics.notes[0]
    assert "step 30" in metrics.notes[0]


def test_two_lines_of_one_step_and_kind_are_merged_and_the_later_wins(tmp_path: Path) -> None:
    metrics = read(tmp_path, train(5, loss=1.0, mfu=0.3), train(5, loss=2.0))
    assert points(metrics, "loss") == [(5, 2.0)]
    assert points(metrics, "mfu") == [(5, 0.3)]


def test_an_event_does_not_rewind(tmp_path: Path) -> None:
    metrics = read(tmp_path, train(10, loss=1.0), {"kind": "event", "step": 0, "message": "start"})
    assert points(metrics, "loss") == [(10, 1.0)]
    assert [(event.step, event.message) for event in metrics.events] == [(0, "start")]


def test_an_event_without_step_is_put_where_it_happened(tmp_path: Path) -> None:
    metrics = read(tmp_path, train(7, loss=1.0), {"kind": "event", "lost": ["gpu", 3]})
    assert metrics.events[0].step == 7
    assert '"lost": ["gpu", 3]' in metrics.events[0].message


@pytest.mark.parametrize(
    "end",
    ['{"kind": "train", "st', '{"kind": "tr\udce4'.encode("utf-8", "surrogateescape"), b"\0" * 40],
)
def test_a_cut_off_last_line_is_left_out_with_a_note(tmp_path: Path, end: str | bytes) -> None:
    tail = end if isinstance(end, bytes) else end.encode()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(train(1, loss=1.0)).encode() + b"\n" + tail)
    metrics = read_metrics(path)
    assert points(metrics, "loss") == [(1, 1.0)]
    assert "last line of metrics.jsonl (2)" in metrics.notes[0]


@pytest.mark.parametrize("broken", ['{"kind": "tra', "[1, 2]", "\x00\x01", "[" * 100_000])
def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path, broken: str) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read(tmp_path, train(1, loss=1.0), broken, "", train(2, loss=1.0))


@pytest.mark.parametrize("step", [None, -1, 1.5, "3", True, float("nan")])
def test_a_report_without_a_step_is_refused(tmp_path: Path, step: object) -> None:
    line = {"kind": "train", "step": step, "loss": 1.0}
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 1: "step"'):
        read(tmp_path, line)


def test_a_report_without_a_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 2: a report needs "kind"'):
        read(tmp_path, train(1, loss=1.0), {"step": 3, "loss": 1.0})


def test_what_is_no_finite_number_is_left_out_and_counted(tmp_path: Path) -> None:
    metrics = read(
        tmp_path,
        train(1, loss=float("nan"), gradient_norm=float("inf"), name="a", huge=10**400),
        train(2, loss=None, gradient_norm=1.0, name=[1]),
    )
    assert set(metrics.curves) == {"gradient_norm"}
    assert points(metrics, "gradient_norm") == [(2, 1.0)]
    assert "train loss: 2" in metrics.notes[0]
    assert "train gradient_norm: 1" in metrics.notes[0]
    assert "train huge: 1" in metrics.notes[0]
    assert "name: 2" in metrics.notes[1]


@pytest.mark.parametrize("content", ["", "\n \n", '{"kind": "tr'])
def test_a_file_without_a_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl: it holds no complete report"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_missing_file_and_a_folder_in_its_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: there is no such file"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")
