import socket
import time

import pytest

from lert_ds.doctor.all_reduce import MESSAGE_BYTES, start_all_reduce


@pytest.fixture
def question() -> dict[str, object]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "first_rank": 0, "slots": 2, "world_size": 2, "address": "127.0.0.1", "port": port,
        "accelerator": "cpu", "seconds": 60,
    }  # fmt: skip


def test_two_processes_add_up_and_are_timed(
    question: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    said = start_all_reduce(question)["said"]
    assert len(said) == 2
    for each in said:
        assert each["backend"] == "gloo"
        assert each["bytes"] == MESSAGE_BYTES["cpu"]
        assert each["bus_bytes_per_second"] == pytest.approx(each["bytes"] / each["seconds"])


def test_one_that_nobody_meets_ends_in_time_with_a_reason(question: dict[str, object]) -> None:
    started = time.monotonic()
    (said,) = start_all_reduce(question | {"slots": 1, "seconds": 9})["said"]
    assert time.monotonic() - started < 30
    assert said["problem"]
