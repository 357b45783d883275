from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.model_surgery import Cut, cut_config
from prune.mask_file import read_masks, write_masks

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 6,
}
EVEN = LertConfig(**SHAPE)
UNEVEN = LertConfig(**SHAPE, layer_attention_heads=[3, 0], layer_intermediate_sizes=[6, 5])
HEADS = ((True, False, True, True), (False, True, False, False))
NEURONS = (torch.arange(6) % 2 == 0, torch.arange(6) < 5)


def equal(one: Cut, other: Cut) -> bool:
    if one.heads != other.heads or (one.neurons is None) != (other.neurons is None):
        return False
    if one.neurons is None or other.neurons is None:
        return True
    return all(torch.equal(a, b) for a, b in zip(one.neurons, other.neurons, strict=True))


@pytest.mark.parametrize(
    ("config", "shape", "names"),
    [
        (EVEN, Cut(heads=HEADS, neurons=NEURONS), {"head_mask", "ffn_mask"}),
        (EVEN, Cut(heads=HEADS), {"head_mask"}),
        (EVEN, Cut(neurons=NEURONS), {"ffn_mask"}),
        (
            UNEVEN,
            Cut(heads=((True, False, True), ()), neurons=(NEURONS[0], NEURONS[1][:5])),
            {"heads.0", "heads.1", "neurons.0", "neurons.1"},
        ),
    ],
)
def test_what_is_written_is_read(
    tmp_path: Path, config: LertConfig, shape: Cut, names: set[str]
) -> None:
    path = tmp_path / "new" / "masks.safetensors"
    write_masks(path, shape)
    assert load_file(path).keys() == names
    found = read_masks(path, config)
    assert equal(found, shape)
    cut_config(config, found)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_masks_of_any_type_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    heads = torch.tensor(HEADS).to(dtype)
    neurons = {f"neurons.{number}": mask.to(dtype) for number, mask in enumerate(NEURONS)}
    save_file({"head_mask": heads, **neurons}, tmp_path / "masks")
    assert equal(read_masks(tmp_path / "masks", EVEN), Cut(heads=HEADS, neurons=NEURONS))


ONES = torch.ones


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (EVEN, {"head_mask": ONES(2, 3)}, r"head_mask, layer 0 \(from 0\), is \[3\] .* has \[4\]"),
        (EVEN, {"head_mask": ONES(3, 4)}, r"head_mask is \[3, 4\] .* needs \[2, 4\]"),
        (EVEN, {"ffn_mask": ONES(6)}, r"ffn_mask is \[6\] .* needs \[2, 6\]"),
        (UNEVEN, {"ffn_mask": ONES(2, 6)}, r"layer 1 \(from 0\), is \[6\] .* has \[5\]"),
        (EVEN, {"neurons.0": ONES(6), "neurons.1": ONES(5)}, r"neurons.1, layer 1 .*\[5\].*\[6\]"),
        (EVEN, {"heads.0": ONES(4)}, "heads.1 is missing"),
        (EVEN, {"heads.0": ONES(4), "head_mask": ONES(2, 4)}, "head_mask and heads.0 are both"),
        (EVEN, {"head_mask": 0.5 * ONES(2, 4)}, r"layer 0 \(from 0\), has other numbers"),
        (EVEN, {"head_mask": ONES(2, 4), "mask": ONES(1)}, "mask is no mask of a model of 2"),
        (EVEN, {"heads.0": ONES(4), "heads.1": ONES(4), "heads.2": ONES(4)}, "heads.2 is no mask"),
        (EVEN, {}, "no mask is in it"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, config: LertConfig, tensors: dict[str, Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "masks")
    with pytest.raises(ConfigError, match=f"masks = {tmp_path / 'masks'}: .*{message}"):
        read_masks(tmp_path / "masks", config)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("head_mask", "utf-8")
    for name in ("text", "absent"):
        with pytest.raises(ConfigError, match=f"masks = {tmp_path / name}: no safetensors file"):
            read_masks(tmp_path / name, EVEN)
