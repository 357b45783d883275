"""A few faults out of the many that tests/chaos/prepare_chaos.py brings about."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "chaos" / "prepare_chaos.py"


@pytest.mark.slow
def test_after_a_few_faults_the_corpus_is_the_same() -> None:
    command = [sys.executable, str(SCRIPT), "--faults", "3", "--seed", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["fault"] for line in lines}) == 3
    assert not any(line["lost"] for line in lines)
