from typing import Any

import pytest

from lert_ds.config import dump, parse
from lert_ds.errors import ConfigError
from lert_ds.finetune.finetune_config import BY_THE_MACHINE, FinetuneRun

TREE = {
    "output": "runs/x",
    "model": "some/model",
    "task": {"name": "ocnli"},
    "train": {"epochs": 1, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-4},
}


def test_what_it_is_by_default() -> None:
    run = parse(FinetuneRun, TREE, "test")
    assert run.seeds == (1, 2, 3, 4, 5)
    assert run.deepspeed == BY_THE_MACHINE
    assert run.optimizer.bias_correction
    assert run.schedule.warmup_share == 0.1
    assert parse(FinetuneRun, dump(run), "again") == run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model is missing; name a model folder or a name on the hub"),
        ({"seeds": []}, r"seeds = \[\]: give one or more, each once"),
        ({"seeds": [1, 2, 1]}, r"seeds = \[1, 2, 1\]: give one or more, each once"),
        ({"seeds": [-1]}, r"seeds = \[-1\]: each must be 0 or more"),
        ({"seeds": ["a"]}, "seeds.0 = 'a': a whole number is needed"),
        ({"evaluations_per_epoch": 0}, "evaluations_per_epoch = 0"),
        ({"task": {}}, "task.name is missing"),
        ({"seed": -2}, "seed = -2"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(FinetuneRun, {**TREE, **changes}, "test")


def test_a_single_key_leaves_the_others_as_fine_tuning_has_them() -> None:
    tree = {
        "output": "run", "model": "model", "task": {"name": "bq"},
        "optimizer": {"weight_decay": 0.1}, "schedule": {"kind": "cosine"},
        "train": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-4},
    }  # fmt: skip
    run = parse(FinetuneRun, tree, "test")
    assert (run.optimizer.weight_decay, run.optimizer.bias_correction) == (0.1, True)
    assert (run.schedule.kind, run.schedule.warmup_of(50)) == ("cosine", 5)
