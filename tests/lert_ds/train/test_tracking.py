"""Where the numbers of a run go: the file always, trackers when asked, the terminal."""

import io
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lert_ds.errors import ConfigError
from lert_ds.train import tracking
from lert_ds.train.tracking import Reporter, TrackingConfig


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        assert record.pop("time") > 0
    return records


def reporter(folder: Path, main: bool = True, **config: Any) -> Reporter:
    return Reporter(TrackingConfig(**config), folder, 20, {"seed": 7}, main)


def write_two(target: Reporter) -> None:
    target.report("train", 10, {"loss": 2.5, "lip/pos": 0.25})
    target.advance(10)
    target.report("valid", 10, {"mlm/loss": 3.5})
    target.event(11, "resumed from step-10")
    target.close()


EXPECTED = [
    {"kind": "train", "step": 10, "loss": 2.5, "lip/pos": 0.25},
    {"kind": "valid", "step": 10, "mlm/loss": 3.5},
    {"kind": "event", "step": 11, "message": "resumed from step-10"},
]


def test_every_report_is_a_line_of_the_file(tmp_path: Path) -> None:
    write_two(reporter(tmp_path))
    assert lines(tmp_path) == EXPECTED
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    write_two(reporter(tmp_path))
    write_two(reporter(tmp_path))
    assert lines(tmp_path) == EXPECTED * 2


def test_other_ranks_write_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    write_two(reporter(tmp_path, main=False, wandb="offline", tensorboard=True))
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == []


def test_without_a_terminal_a_report_is_a_plain_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    target = reporter(tmp_path)
    target.report("train", 10, {"loss": 2.54321, "learning_rate": 1e-4, "data_wait_share": 0.1})
    target.report("valid", 10, {"other": 1.0})
    target.event(11, "resumed from step-10")
    assert caplog.messages == [
        "train step 10  loss 2.543  learning_rate 0.0001",  # the rest is in the file
        "valid step 10  other 1",
        "step 11: resumed from step-10",
    ]


def test_on_a_terminal_there_is_a_bar_and_lines_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    screen = io.StringIO()

    def console(**_: Any) -> Console:
        return Console(file=screen, force_terminal=True, width=120)

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(tracking, "Console", console)
    write_two(reporter(tmp_path))
    assert "10/20" in screen.getvalue()
    assert "loss 2.5" in screen.getvalue()
    assert "resumed from step-10" in screen.getvalue()
    assert caplog.messages == []
    assert lines(tmp_path) == EXPECTED


def test_tensorboard_gets_every_number_at_its_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_two(reporter(tmp_path, tensorboard=True))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = ["train/loss", "train/lip/pos", "valid/mlm/loss"]
    assert sorted(events.Tags()["scalars"]) == sorted(names)
    read = [(events.Scalars(name)[0].step, events.Scalars(name)[0].value) for name in names]
    assert read == [(10, 2.5), (10, 0.25), (10, 3.5)]
    assert lines(tmp_path) == EXPECTED


@pytest.mark.slow
def test_wandb_offline_leaves_a_run_to_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "first"
    folder.mkdir()
    write_two(reporter(folder, wandb="offline", project="test"))
    (run,) = (folder / "wandb").glob("offline-run-*")
    (record,) = run.glob("run-*.wandb")
    limit = time.monotonic() + 30
    while b"valid/mlm/loss" not in record.read_bytes() and time.monotonic() < limit:
        time.sleep(0.05)  # its own process writes when it comes to it
    content = record.read_bytes()
    for name in (b"train/loss", b"valid/mlm/loss", b"first", b"seed"):
        assert name in content
    assert lines(folder) == EXPECTED


class FakeWandb:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0

    Settings = dict

    def init(self, **settings: Any) -> "FakeWandb":
        self.settings = settings
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize(("name", "expected"), [(None, "run-1"), ("mine", "mine")])
def test_wandb_gets_the_run_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, expected: str
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = tmp_path / "run-1"
    folder.mkdir()
    write_two(reporter(folder, wandb="online", name=name))
    assert fake.settings["mode"] == "online"
    assert fake.settings["project"] == "lert-ds"
    assert fake.settings["name"] == expected
    assert fake.settings["config"] == {"seed": 7}
    assert fake.settings["dir"] == str(folder)
    assert fake.settings["settings"]["disable_git"]  # no patch of what is not committed
    assert fake.logged == [
        ({"train/loss": 2.5, "train/lip/pos": 0.25}, 10),
        ({"valid/mlm/loss": 3.5}, 10),
    ]
    assert fake.finished == 1


def test_wandb_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    run = {"model": "https://me:pass@host/model", "list": ["a s3cret-value"]}
    config = TrackingConfig(wandb="online", name="with s3cret-value")
    Reporter(config, tmp_path, 20, run, True).close()
    assert fake.settings["config"] == {
        "model": "https://[…]@host/model",
        "list": ["a [MY_TOKEN]"],
    }
    assert fake.settings["name"] == "with [MY_TOKEN]"


def test_a_resumed_run_is_the_same_run_at_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    ids = []
    for name in ("one", "one", "two"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        reporter(folder, wandb="online").close()
        ids.append(fake.settings["id"])
    assert ids[0] == ids[1] != ids[2]
    assert fake.settings["resume"] == "allow"


@pytest.mark.parametrize(
    ("module", "config", "key"),
    [
        ("wandb", {"wandb": "offline"}, 'tracking.wandb = "offline"'),
        ("torch.utils.tensorboard", {"tensorboard": True}, "tracking.tensorboard = true"),
    ],
)
def test_a_library_that_is_not_there_is_named_with_the_way_to_get_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    config: dict[str, Any],
    key: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what an import of an absent module meets
    with pytest.raises(ConfigError) as caught:
        reporter(tmp_path, **config)
    assert str(caught.value).startswith(key)
    assert 'pip install "lert-ds[tracking]"' in str(caught.value)
    assert list(tmp_path.iterdir()) == []
