"""Shares of right answers, counted by hand, and how far they may fall."""

from typing import Any

import numpy as np
import pytest

from lert_ds.errors import ModelError
from prune.export.accuracy import measure, refuse_drop
from prune.export.export_config import AccuracyConfig
from prune.export.questions import UNKNOWN, Question


def logits_of(*classes: int) -> np.ndarray[Any, Any]:
    return np.eye(4, dtype=np.float32)[list(classes)]


def test_counts_what_is_known_over_all_batches() -> None:
    first = Question({}, np.array([0, 3]), {"mlm": ("logits", np.array([1, 2]))})
    second = Question({}, np.array([1]), {"mlm": ("logits", np.array([3]))})
    first.answers["pos"] = ("pos_logits", np.array([2, UNKNOWN]))
    second.answers["pos"] = ("pos_logits", np.array([UNKNOWN]))
    second.answers["dep"] = ("pos_logits", np.array([UNKNOWN]))
    answers = iter(
        [
            # Every position of [2 rows, 2 places]; the chosen places alone.
            {"logits": logits_of(1, 0, 0, 2).reshape(2, 2, 4), "pos_logits": logits_of(2, 3)},
            {"logits": logits_of(0), "pos_logits": logits_of(1)},
        ]
    )
    assert measure(lambda _: next(answers), [first, second]) == {"mlm": 2 / 3, "pos": 1.0}


def test_falls_so_far_and_no_further() -> None:
    config = AccuracyConfig(largest_drop=0.25)
    refuse_drop(config, "a.onnx", {"mlm": 0.75, "pos": 0.1}, {"mlm": 0.5, "pos": 0.9})
    with pytest.raises(ModelError, match=r"^pos of a\.onnx is 0\.0000 where PyTorch has 0\.5000"):
        refuse_drop(config, "a.onnx", {"mlm": 0.5, "pos": 0.5}, {"mlm": 0.5, "pos": 0.0})
