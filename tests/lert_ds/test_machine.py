import os

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
