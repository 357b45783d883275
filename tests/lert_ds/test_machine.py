import os
from pathlib import Path

import pytest

from lert_ds import machine


def test_the_machine_is_described() -> None:
    found = machine.description(["numpy", "no-such-package"])
    assert found["cpu"]
    assert found["cores"] == os.cpu_count()
    assert found["usable_cores"] == machine.usable_cores() >= 1
    assert str(found["numpy"])[0].isdigit()
    assert found["no-such-package"] is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone pins processes")
def test_usable_cores_are_those_that_the_process_may_run_on() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_processor_is_known_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = machine.processor_features()
    assert found == machine.processor_features()
    assert all(isinstance(part, str) for part in found)

    def features_of(text: str) -> tuple[str, ...]:
        path = tmp_path / "cpuinfo"
        path.write_text(text, "utf-8")
        monkeypatch.setattr(machine, "Path", lambda _: path)
        return machine.processor_features()

    one = features_of("model name\t: A\nflags\t\t: sse avx2\n")
    assert "avx2 sse" in one
    assert features_of("model name\t: A\nflags\t\t: avx2 sse\n") == one  # in whatever order
    assert features_of("model name\t: A\nflags\t\t: sse avx2 amx_tile\n") != one
    assert "asimd fp" in features_of("Features\t: fp asimd\n")


@pytest.mark.parametrize(
    ("kind", "vnni", "overflow"),
    [
        ("x86_64", False, True),
        ("AMD64", False, True),
        ("x86_64", True, False),
        ("aarch64", False, False),
    ],
)  # fmt: skip
def test_bytes_overflow_on_x86_without_vnni(
    monkeypatch: pytest.MonkeyPatch, kind: str, vnni: bool, overflow: bool
) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: kind)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: vnni)
    assert machine.sums_of_bytes_overflow() is overflow
