from pathlib import Path
from typing import Any

import pytest

from lert_ds.doctor.deepspeed_check import problem_of
from lert_ds.train import deepspeed_config

ROOT = Path(__file__).parents[3]
OWNED = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
}


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_what_ships_holds(path: Path) -> None:
    tree = deepspeed_config.resolve(path, OWNED)
    assert problem_of(tree) is None
    assert tree["train_batch_size"] == 16  # left as it was


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("zero_optimization", "reduce_bucket_sise", 1),
        ("zero_optimization", "reduce_bucket_size", "many"),
        ("bf16", "enable", True),
    ],
)
def test_a_key_that_deepspeed_refuses_is_named(section: str, key: str, value: Any) -> None:
    tree = deepspeed_config.resolve(ROOT / "ds_configs" / "zero2_bf16.json", OWNED)
    tree[section][key] = value
    problem = problem_of(tree)
    assert problem is not None
    assert problem.startswith(key)
