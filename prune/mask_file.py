"""Masks of heads and neurons in a safetensors file, by the names of TextPruner.

    head_mask   [layers, heads]       1 for what stays; bool, or any numbers 0 and 1
    ffn_mask    [layers, neurons]
    heads.0 heads.1 …                 [heads] a layer, instead of head_mask, where layers differ
    neurons.0 neurons.1 …             [neurons] a layer, instead of ffn_mask

Either kind may be missing: all of it stays. TextPruner itself keeps masks in a pickle, which is not
read here; `safetensors.torch.save_file({"head_mask": …, "ffn_mask": …}, path)` writes such a file.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.files import write_whole
from lert_ds.model_surgery import Cut


def read_masks(path: Path, config: LertConfig) -> Cut:
    """Return the heads and neurons that the file at `path` keeps of a model of `config`.

    Raises:
        ConfigError: there is no such file, it holds something else, or a mask does not fit.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"masks = {path}: no safetensors file ({error}); name one with head_mask or ffn_mask"
        ) from error
    layers = range(config.num_hidden_layers)
    head_counts = [config.heads_of(number) for number in layers]
    neuron_counts = [config.intermediate_size_of(number) for number in layers]
    heads = _take(path, tensors, "head_mask", "heads", head_counts)
    neurons = _take(path, tensors, "ffn_mask", "neurons", neuron_counts)
    if tensors:
        raise ConfigError(
            f"masks = {path}: {min(tensors)} is no mask of a model of {len(layers)} layers; the "
            "names are head_mask and ffn_mask, or heads.N and neurons.N for each layer from 0"
        )
    if heads is None and neurons is None:
        raise ConfigError(f"masks = {path}: no mask is in it; put head_mask or ffn_mask there")
    return Cut(
        heads=None if heads is None else tuple(tuple(mask.tolist()) for mask in heads),
        neurons=neurons,
    )


def write_masks(path: Path, cut: Cut) -> None:
    """Write the masks of `cut` to the file `path`, whole; its layers and pieces are no masks."""
    tensors: dict[str, Tensor] = {}
    if cut.heads is not None:
        masks = [torch.tensor(row, dtype=torch.bool) for row in cut.heads]
        tensors |= _named("head_mask", "heads", masks)
    if cut.neurons is not None:
        tensors |= _named("ffn_mask", "neurons", cut.neurons)
    content = save(tensors, {"format": "pt"})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))


def _named(whole: str, prefix: str, masks: Sequence[Tensor]) -> dict[str, Tensor]:
    if len({len(mask) for mask in masks}) == 1:
        return {whole: torch.stack(list(masks)).cpu()}
    return {f"{prefix}.{number}": mask.cpu().clone() for number, mask in enumerate(masks)}


def _take(
    path: Path, tensors: dict[str, Tensor], whole: str, prefix: str, counts: Sequence[int]
) -> tuple[Tensor, ...] | None:
    """Take the masks of one kind out of `tensors`, bool [units] a layer; None where none is there.

    Raises:
        ConfigError: one is missing, of another shape or of other numbers than 0 and 1.
    """
    names = [f"{prefix}.{number}" for number in range(len(counts))]
    present = [name for name in names if name in tensors]
    if whole in tensors:
        if present:
            raise ConfigError(
                f"masks = {path}: {whole} and {present[0]} are both there; keep one of them"
            )
        if tensors[whole].dim() != 2 or len(tensors[whole]) != len(counts):
            wanted = f"[{len(counts)}, {max(counts)}]"
            raise ConfigError(
                f"masks = {path}: {whole} is {list(tensors[whole].shape)} where the model needs "
                f"{wanted}, a row a layer"
            )
        rows = list(tensors.pop(whole))
        names = [f"{whole}, layer {number} (from 0)," for number in range(len(counts))]
    elif present:
        if missing := [name for name in names if name not in tensors]:
            raise ConfigError(f"masks = {path}: {missing[0]} is missing; each layer needs a mask")
        rows = [tensors.pop(name) for name in names]
        names = [f"{name}, layer {number} (from 0)," for number, name in enumerate(names)]
    else:
        return None
    for name, row, count in zip(names, rows, counts, strict=True):
        if row.shape != (count,):
            raise ConfigError(
                f"masks = {path}: {name} is {list(row.shape)} where the model has [{count}]; "
                f"layers that differ need a {prefix}.N each"
            )
        if not bool(((row == 0) | (row == 1)).all()):
            raise ConfigError(
                f"masks = {path}: {name} has other numbers than 0 and 1; 1 is for what stays"
            )
    return tuple(row.bool() for row in rows)
