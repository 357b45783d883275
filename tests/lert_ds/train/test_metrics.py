"""Sums over micro-batches and ranks, divided once; and the lines of metrics.jsonl."""

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.train import metrics
from lert_ds.train.metrics import MetricSums, Record, mend_json_lines, report_line


def pair(total: float, count: float) -> torch.Tensor:
    return torch.tensor([total, count])


def test_sums_are_divided_once() -> None:
    sums = MetricSums()
    sums.add({"loss": pair(10.0, 1.0), "accuracy": pair(1.0, 4.0)})
    sums.add({"loss": pair(2.0, 3.0), "accuracy": pair(3.0, 4.0)})
    assert sums.reduce() == {"accuracy": 0.5, "loss": 3.0}  # the mean of averages would be 5.33


def test_rows_are_classes_and_their_ratios_are_averaged() -> None:
    sums = MetricSums()
    sums.add({"macro_f1": torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])})
    sums.add({"macro_f1": torch.tensor([[1.0, 2.0], [0.0, 4.0], [0.0, 0.0]])})
    assert sums.reduce()["macro_f1"] == pytest.approx((2 / 4 + 3 / 8) / 2)


def test_what_was_never_counted_is_left_out() -> None:
    sums = MetricSums()
    sums.add({"dep/loss": pair(0.0, 0.0), "f1": torch.zeros(3, 2), "loss": pair(1.0, 1.0)})
    assert sums.reduce() == {"loss": 1.0}


def test_a_name_may_be_absent_from_a_micro_batch() -> None:
    sums = MetricSums()
    sums.add({"a": pair(1.0, 1.0)})
    sums.add({"b": pair(2.0, 1.0)})
    sums.add({"a": pair(3.0, 1.0)})
    assert sums.reduce() == {"a": 2.0, "b": 2.0}


def test_reading_starts_anew() -> None:
    sums = MetricSums()
    sums.add({"loss": pair(5.0, 1.0)})
    assert sums.reduce() == {"loss": 5.0}
    assert sums.reduce() == {}
    sums.add({"loss": pair(7.0, 1.0)})
    assert sums.reduce() == {"loss": 7.0}


def test_small_numbers_add_to_large_sums() -> None:
    sums = MetricSums()
    sums.add({"tokens": pair(2.0**24, 1.0)})
    for _ in range(100):
        sums.add({"tokens": pair(1.0, 0.0)})  # float32 would stay at 2^24
    assert sums.reduce()["tokens"] == 2.0**24 + 100


def test_low_precision_is_added_in_float64() -> None:
    sums = MetricSums()
    for _ in range(1000):
        sums.add({"loss": torch.tensor([0.5, 1.0], dtype=torch.bfloat16)})
    assert sums.reduce() == {"loss": 0.5}


def test_the_graph_is_let_go() -> None:
    sums = MetricSums()
    weight = torch.ones(2, requires_grad=True)
    sums.add({"loss": weight * 2})
    assert not sums._sums["loss"].requires_grad


def test_a_callers_tensor_is_not_changed() -> None:
    sums = MetricSums()
    first = pair(1.0, 1.0).double()
    sums.add({"loss": first})
    sums.add({"loss": pair(1.0, 1.0)})
    assert first.tolist() == [1.0, 1.0]


def test_ranks_are_summed_in_one_reduction_before_the_division(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[torch.Tensor] = []

    def with_another_rank(tensor: torch.Tensor) -> torch.Tensor:
        sent.append(tensor)
        return tensor + torch.tensor([30.0, 6.0, 0.0, 2.0, 1.0, 1.0, 4.0, 4.0])

    monkeypatch.setattr(metrics, "sum_over_ranks", with_another_rank)
    sums = MetricSums()
    # Added in another order than that of the names, which ranks may not agree on.
    sums.add({"loss": torch.tensor([[0.0, 2.0], [4.0, 4.0]]), "b": pair(1.0, 2.0)})
    sums.add({"a": pair(10.0, 4.0)})
    values = sums.reduce()
    assert len(sent) == 1
    assert sent[0].tolist() == [10.0, 4.0, 1.0, 2.0, 0.0, 2.0, 4.0, 4.0]  # a, b, loss
    assert sent[0].dtype == torch.float64
    assert values == {"a": 4.0, "b": 0.25, "loss": pytest.approx((1 / 3 + 1) / 2)}


@given(
    st.lists(
        st.tuples(st.integers(-1000, 1000), st.integers(1, 50)).map(lambda p: pair(*map(float, p))),
        min_size=1,
        max_size=20,
    ),
    st.randoms(use_true_random=False),
)
def test_the_cut_into_micro_batches_does_not_matter(pairs: list[torch.Tensor], random) -> None:  # type: ignore[no-untyped-def]
    one, many = MetricSums(), MetricSums()
    one.add({"loss": torch.stack(pairs).sum(0)})
    random.shuffle(pairs)
    for part in pairs:
        many.add({"loss": part})
    assert many.reduce() == one.reduce()


def test_sums_go_on_from_a_checkpoint_bit_for_bit() -> None:
    batches = [{"loss": torch.rand(2), "f1": torch.rand(3, 2)} for _ in range(6)]
    whole = MetricSums()
    for batch in batches:
        whole.add(batch)
    first, second = MetricSums(), MetricSums()
    for batch in batches[:2]:
        first.add(batch)
    state = json.loads(json.dumps(first.state()))
    second.restore(state, torch.device("cpu"))
    for batch in batches[2:]:
        second.add(batch)
        first.add(batch)
    assert second.reduce() == whole.reduce() == first.reduce(), "and asking changes nothing"


def test_the_state_is_of_all_ranks_and_one_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = MetricSums()
    sums.add({"loss": pair(1.0, 2.0)})
    monkeypatch.setattr(metrics, "sum_over_ranks", lambda tensor: tensor * 3)
    assert sums.state() == {"loss": [[3.0, 6.0]]}
    assert MetricSums().state() == {}


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b": 2', b'{"a": 1}\n'),
        (b'{"a', b""),
        (b'{"a": 1}\n' + b"x" * 200_000, b'{"a": 1}\n'),
    ],
)
def test_a_line_that_a_crash_cut_short_goes(tmp_path: Path, content: bytes, kept: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    mend_json_lines(path)  # no file yet
    path.write_bytes(content)
    mend_json_lines(path)
    assert path.read_bytes() == kept


def test_a_report_is_a_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = time.time()
    Record(path).append(report_line("train", 10, {"loss": 2.5, "mlm/accuracy": 0.5}))
    Record(path).append(report_line("event", 11, {"message": "第一行\n第二行"}))
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) == 2
    first, second = map(json.loads, lines)
    assert before - 0.001 <= first.pop("time") <= time.time() + 0.001
    assert first == {"kind": "train", "step": 10, "loss": 2.5, "mlm/accuracy": 0.5}
    assert second["message"] == "第一行\n第二行"
    assert "第一行" in lines[1]  # readable, not escaped


class _Disk:
    """Takes so many bytes of a file and refuses the rest, as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free: int | None = None
        open_file = Path.open
        disk = self

        class File:
            def __init__(self, path: Path) -> None:
                self._file = open_file(path, "ab", buffering=0)

            def __enter__(self) -> "File":
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

            def write(self, line: bytes) -> int:
                if disk.free is None:
                    return int(self._file.write(line))
                if not disk.free:
                    raise OSError(errno.ENOSPC, "No space left on device")
                written = int(self._file.write(line[: disk.free]))
                disk.free -= written
                return written

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

        def opened(path: Path, mode: str = "r", **options: Any) -> Any:
            return File(path) if mode == "ab" else open_file(path, mode, **options)

        monkeypatch.setattr(Path, "open", opened)


def test_lines_that_a_full_disk_refuses_are_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    record = Record(path)
    record.append({"step": 1})
    disk = _Disk(monkeypatch)
    disk.free = 5  # half a line
    for step in (2, 3):
        record.append({"step": step})
        assert path.read_bytes() == b'{"step": 1}\n', "no half of a line stays"
    assert caplog.text.count("its lines wait for room") == 1, "told once"
    disk.free = None
    record.append({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    disk.free = 0
    record.append({"step": 5})
    assert caplog.text.count("its lines wait for room") == 2, "a second time is told again"
