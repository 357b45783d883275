"""How weights are chosen is tested with the loop, in test_trainer.py; here what goes wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lert_ds.errors import CheckpointError, ConfigError
from lert_ds.train.best import FILE, BestWeights
from lert_ds.train.peers import Peers


class Weights:
    """Stands for an engine."""

    def full_weights(self) -> dict[str, torch.Tensor]:
        return {"w": torch.ones(2)}


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    engine: Any = Weights()
    best = BestWeights(tmp_path, "f1", Peers(60))
    best.consider(engine, 1, {"f1": float("nan")})
    assert best.best is None
    best.consider(engine, 2, {"f1": -1.0})
    assert best.best is not None
    assert best.best.step == 2


def test_a_metric_that_the_evaluation_lacks_is_told(tmp_path: Path) -> None:
    engine: Any = Weights()
    best = BestWeights(tmp_path, "f1", Peers(60))
    with pytest.raises(ConfigError, match=r"chosen by f1, but the evaluation gives accuracy, loss"):
        best.consider(engine, 1, {"loss": 1.0, "accuracy": 0.5})


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    if damage is None:
        save_file({"w": torch.ones(2)}, tmp_path / FILE)  # without a record
    else:
        (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"best.safetensors: .*overwrite=true"):
        BestWeights(tmp_path, "f1", Peers(60))
