from typing import Any

import pytest

from distill.run_config import DistillRun
from lert_ds.config import parse
from lert_ds.errors import ConfigError

TRAIN = {"steps": 1, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3}
TREE = {"output": "run", "corpus": "corpus", "teacher": ["a", "b"], "train": TRAIN}


def test_teachers_count_alike_unless_told_otherwise() -> None:
    assert parse(DistillRun, TREE, "test").weights_of_teachers() == (0.5, 0.5)
    weighed = parse(DistillRun, {**TREE, "teacher_weights": [3, 1]}, "test")
    assert weighed.weights_of_teachers() == (3, 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": []}, "teacher is empty"),
        ({"teacher_weights": [1]}, "teacher_weights has 1 numbers for 2 teachers"),
        ({"teacher_weights": [0, 0]}, "nor all of them 0"),
        ({"corpus": []}, "corpus is missing"),
        ({"task": {"name": "ocnli"}}, "corpus and task are both given"),
        ({"teacher_precision": "int4"}, "int8"),
        ({"teacher_precision": "int8", "teacher_compile": True}, "leave out teacher_compile"),
        ({"teacher_precision": "int8", "teacher_partitioned": True}, "whole on each process"),
        (
            {
                "attend_across_documents": False,
                "distillation": {
                    "intermediate_matches": [
                        {"feature": "attention", "loss": "attention_mse", "layers": [[1, 1]]}
                    ]
                },
            },
            "attend_across_documents = false and a match of feature = attention",
        ),
        (
            {"corpus": [], "task": {"name": "ocnli"}, "teacher_cache": "cache"},
            "teacher_cache and task are both given: a task's examples are few",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(DistillRun, TREE | changes, "test")
    assert told in str(raised.value)
