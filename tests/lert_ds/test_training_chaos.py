"""A short run of what `make chaos` does at length: a fault in each of the three trainings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "chaos/training_chaos.py"


@pytest.mark.launch
@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    output = tmp_path / "chaos.json"
    command = [sys.executable, str(SCRIPT), "--faults", "6", "--seed", "7", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    lines = json.loads(output.read_text("utf-8"))
    assert {line["training"] for line in lines} == {"pretrain", "distill", "recover"}
    assert not any(line.get("lost") for line in lines)
    ends = [line["outcome"] for line in lines if line["fault"] == "none: the last start"]
    assert len(ends) == 3
    assert all(end.endswith("weights and samples equal") for end in ends)
