from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lert_ds import model_dir
from lert_ds.errors import ConfigError
from prune.prune_config import PruneRun
from prune.prune_plan import check, explain
from prune.run import prune

Make = Callable[..., PruneRun]


@pytest.mark.parametrize(
    "changes",
    [
        {"pruning": {"target_num_of_heads": 2, "target_ffn_size": 12}},
        {"pruning": {"target_num_of_heads": 2.5, "head_even_masking": False}},
        {"pruning": {"target_ffn_size": 16, "ffn_even_masking": False, "multiple_of": 8}},
        {"drop_layers": 1, "pruning": {"target_num_of_heads": 3}},
        {"drop_layers": [1, 3]},
        {},
    ],
)
def test_the_dry_run_tells_the_parameters_that_are_left(
    prune_run: Make, changes: dict[str, Any]
) -> None:
    run = prune_run(**changes)
    told = next(explain(run))
    found = prune(run)["parameters"]
    assert f"{found['before']:,} → {found['after']:,} " in told


def test_targets_and_vocabularies_are_told(prune_run: Make) -> None:
    run = prune_run(target={"size_mb": 0.01}, vocabulary={"size": 30})
    told = "\n".join(explain(run))
    assert "size_mb ≤ 0.01" in told
    assert "45 pieces → at most 30" in told


def test_what_is_named_to_stay(prune_run: Make, small_model: Path, tmp_path: Path) -> None:
    shape = model_dir.read_config(small_model)
    found = check(prune_run(drop_layers=[2]), shape, small_model)
    assert (found.layers, found.heads) == ((0, 2), None)
    heads = torch.eye(3, 4)
    save_file({"head_mask": heads}, tmp_path / "masks.safetensors")
    masks = {"pruning_method": "masks", "masks": str(tmp_path / "masks.safetensors")}
    found = check(prune_run(pruning=masks), shape, small_model)
    assert found.heads == tuple(tuple(row) for row in heads.bool().tolist())


def test_more_than_the_layers_left_have_is_refused(prune_run: Make, small_model: Path) -> None:
    shape = model_dir.read_config(small_model)
    run = prune_run(drop_layers=[1], pruning={"target_num_of_heads": 5})
    with pytest.raises(ConfigError, match=r"target_num_of_heads = 5 asks for 10 in 2 layers"):
        check(run, shape, small_model)
