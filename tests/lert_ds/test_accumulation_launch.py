"""What processes tell each other while they accumulate, counted under the real launcher."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

pytestmark = [pytest.mark.launch, pytest.mark.slow]

ONCE_A_STEP = ["zero0_fp32", "zero0_bf16", "zero1_fp32", "zero1_bf16", "zero1_autocast", "cpu_fp32"]
EACH_MICRO_BATCH = ["zero2_fp32", "zero2_bf16", "zero2_bf16_offload", "zero3_fp32"]


@pytest.fixture(scope="module")
def found(
    launch: Callable[[int, Sequence[str]], Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("collectives") / "found.json"
    done = launch(2, ["tests/launch/collectives.py", str(path)])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(path.read_text())
    assert sorted(result) == sorted(ONCE_A_STEP + EACH_MICRO_BATCH)
    return result


@pytest.mark.parametrize("machine", ONCE_A_STEP)
def test_nothing_is_said_before_the_last_micro_batch(found: Any, machine: str) -> None:
    """So `no_sync` has nothing left to save: DeepSpeed waits by itself."""
    *before, (passes, update) = found[machine]["counts"]
    assert before == [[{}, {}]] * 3
    gradients = passes | update
    assert gradients.get("gloo:all_reduce", 0) + gradients.get("gloo:reduce", 0) > 0
    if not machine.startswith("zero0"):
        assert update["gloo:all_gather"] > 0, "the new weights"


@pytest.mark.parametrize("machine", EACH_MICRO_BATCH)
def test_partitioned_gradients_are_sent_after_each_micro_batch(found: Any, machine: str) -> None:
    """They have no room for what is another's: that is what they are for."""
    for passes, update in found[machine]["counts"][:-1]:
        assert sum(passes.get(f"gloo:{kind}", 0) for kind in ("all_reduce", "reduce")) > 0
        assert update == {}
        assert (machine.startswith("zero3")) == ("gloo:all_gather" in passes)


@pytest.mark.parametrize("machine", ONCE_A_STEP + EACH_MICRO_BATCH)
def test_accumulated_is_the_same_as_at_once(found: Any, machine: str) -> None:
    tolerance = 1e-6 if machine.endswith("fp32") else 2e-2
    assert found[machine]["accumulated"] == pytest.approx(found[machine]["at once"], abs=tolerance)


def test_every_stage_trains_alike(found: Any) -> None:
    first = found["zero0_fp32"]["accumulated"]
    for machine in ("zero1_fp32", "zero2_fp32", "zero3_fp32", "cpu_fp32"):
        assert found[machine]["accumulated"] == pytest.approx(first, abs=1e-6)
