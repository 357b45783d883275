"""Progress: a bar on a terminal, lines elsewhere, and never in the way."""

import logging
import sys
import time

import pytest
from rich.console import Console

from lert_ds.corpus import progress


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.01)
    with caplog.at_level(logging.INFO), progress.watch("counting", 5, lambda: 3):
        time.sleep(0.1)
    assert "counting: 3 of 5 tasks" in caplog.text
    assert "counting: done in 0." in caplog.text


def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(
        progress, "Console", lambda file: Console(file=file, force_terminal=True, width=80)
    )
    with progress.watch("counting", 5, lambda: 3):
        time.sleep(0.3)
    assert "3/5" in capsys.readouterr().err


def test_an_error_passes_and_says_nothing_is_done(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match="mine"),
        progress.watch("counting", 5, lambda: sys.maxsize),
    ):
        raise ValueError("mine")
    assert "done" not in caplog.text
