"""What a pruning leaves, as far as that is known before anything is read or scored."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lert_ds import model_dir, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.files import refuse_unwritable
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.tasks import find_task
from lert_ds.model_surgery import Cut, cut_config
from lert_ds.modeling_lert import LertForPreTraining
from prune import layer_choice, mask_file, masks
from prune.prune_config import PruneRun
from prune.vocabulary.choice import must_keep


def check(config: PruneRun, shape: LertConfig, source: Path) -> Cut:
    """Refuse what cannot be, and return the layers, heads and neurons that are named to stay.

    Args:
        config: Of the run.
        shape: Of the model to prune.
        source: Its folder.

    Raises:
        ConfigError: names the key that asks for what the model does not have.
    """
    for key, path in (("scoring.file", config.scoring.file), ("target.table", _table(config))):
        if path is not None:
            refuse_unwritable(path, key)
    given = Cut()
    count = shape.num_hidden_layers
    if config.pruning.masks is not None:
        given = mask_file.read_masks(config.pruning.masks, shape)
    if isinstance(config.drop_layers, tuple):
        if config.drop_layers:
            layers = layer_choice.layers_without(config.drop_layers, count)
            given = dataclasses.replace(given, layers=layers)
    else:
        layer_choice.check_count(config.drop_layers, count)
    left = range(count - config.drop_layers) if isinstance(config.drop_layers, int) else None
    masks.check(config.pruning, shape, given.layers or left)
    if config.vocabulary is not None:
        must_keep(tokenizer_files.load(source), config.vocabulary)
    return given


def _table(config: PruneRun) -> Path | None:
    return None if config.target is None else config.target.table


def explain(config: PruneRun) -> Iterator[str]:
    """Yield what --dry-run tells: what is left, as far as that is known before it runs."""
    source = model_dir.resolve(config.model)
    before = model_dir.read_config(source)
    given = check(config, before, source)
    count = before.num_hidden_layers
    if isinstance(config.drop_layers, int) and config.drop_layers:  # which does not matter here
        given = dataclasses.replace(given, layers=tuple(range(count - config.drop_layers)))
    if config.pruning.pruning_method == "iterative":
        given = _as_many(config.pruning, before, given)
    cls: type[PreTrainedModel] = LertForPreTraining
    if config.task is not None:
        cls = KINDS[find_task(config.task.name).kind].model
    parameters = model_dir.count_parameters(before, cls)
    left = model_dir.count_parameters(cut_config(before, given), cls)
    if config.target is None:
        yield f"{'parameters':<17} {parameters:,} → {left:,} ({left / parameters:.1%})"
    else:
        name, limit = config.target.name, config.target.limit
        yield f"{'parameters':<17} {parameters:,}"
        yield f"{'target':<17} {name} ≤ {limit:,g}: the numbers that meet it are searched"
    if config.vocabulary is not None:
        most = config.vocabulary.size
        kept = "what is counted" if most is None else f"at most {most:,}"
        each = f"{before.hidden_size + 1} parameters each, beside those above"
        yield f"{'vocabulary':<17} {before.vocab_size:,} pieces → {kept}, {each}"


def _as_many(asked: masks.PruningConfig, before: LertConfig, given: Cut) -> Cut:
    """Return a cut that leaves as many heads and neurons as any scores would."""
    numbers = range(before.num_hidden_layers)
    layers = numbers if given.layers is None else given.layers
    totals = masks.check(asked, before, given.layers)

    def keep(sizes: list[int], total: int | None, **how: Any) -> list[Tensor] | None:
        if total is None:
            return None
        found = [torch.ones(size, dtype=torch.bool) for size in sizes]
        equal = [torch.ones(sizes[number]) for number in layers]
        for number, mask in zip(layers, masks.choose(equal, total, **how), strict=True):
            found[number] = mask
        return found

    heads = keep(
        [before.heads_of(number) for number in numbers],
        totals.heads,
        even=asked.head_even_masking,
        minimum=asked.minimum_heads,
    )
    neurons = keep(
        [before.intermediate_size_of(number) for number in numbers],
        totals.neurons,
        even=asked.ffn_even_masking,
        minimum=asked.minimum_neurons,
        multiple_of=asked.multiple_of,
    )
    return Cut(
        heads=None if heads is None else tuple(tuple(mask.tolist()) for mask in heads),
        neurons=None if neurons is None else tuple(neurons),
        layers=given.layers,
    )
