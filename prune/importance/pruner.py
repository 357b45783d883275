"""TextPruner on LERT and transformers 5: its importance scores, and its pruner.

    importance(model, batches, tasks)                          → Scores
    TransformerPruner(model, config).prune(batches)            → a smaller LERT, by its iterations
    TransformerPruner(model).prune(head_mask=…, ffn_mask=…)    → the same, by masks

`prune_heads`, which TextPruner cuts by, has gone from transformers, and it saves no layers of
different sizes; `lert_ds.model_surgery` does the one and `lert_ds.model_dir` the other.
"""

import copy
import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.distributed import sum_over_ranks
from lert_ds.errors import ConfigError
from lert_ds.finetune.batches import TaskBatch
from lert_ds.model_surgery import Cut, cut, kept
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from prune.importance.rows import Ask, masked_rows
from prune.importance.scores import Precision, Scores
from prune.importance.textpruner_model import (
    AsBert,
    FrugalPruner,
    TransformerPruningConfig,
    as_mappings,
    refuse_uneven,
)

log = logging.getLogger(__name__)


def importance(
    model: PreTrainedModel,
    batches: Iterable[Batch | TaskBatch],
    ask: Ask | None = None,
    *,
    use_logits: bool = False,
    precision: Precision = "fp32",
    ffn_even_masking: bool = True,
    reference: PreTrainedModel | None = None,
) -> Scores:
    """Return TextPruner's importance of each head and neuron of `model`.

    The model is as before afterwards. All processes must call it, each with its own batches; these
    are held in memory. Batches without a masked position count nowhere.

    Args:
        model: Whole weights, on the device to compute on; as many heads in every layer, and as many
            neurons.
        batches: This rank's share. Scores fall with their size, so batches should have one size.
        ask: What a batch asks of the model, masked words alone where it is None; not with
            `use_logits`.
        use_logits: Take the logits of `reference` for labels, at every position, padding included.
        precision: What the model computes in; with `use_logits` the reference alone.
        ffn_even_masking: TextPruner's switch: whether every layer is to keep as many neurons. Where
            not, the score of a neuron is that of its output alone.
        reference: What gives labels with `use_logits`: the model as it was before the first
            iteration of pruning. None is `model` itself, where TextPruner starts.

    Raises:
        ConfigError: no batch, of any rank, had a masked position; or `model` is uneven.
    """
    refuse_uneven(model.config)
    config = TransformerPruningConfig(ffn_even_masking=ffn_even_masking, use_logits=use_logits)
    ask = ask or masked_rows()
    scorer = FrugalPruner(model, config, ask, precision)
    if use_logits:
        if reference is None or reference is model:
            log.warning(
                "method = textpruner_logits compares the model with itself until something of it "
                "is pruned, so its first scores are rounding errors; fisher needs no labels "
                "either, and does not start from nothing"
            )
        else:
            scorer.model_rep = copy.deepcopy(AsBert(reference, ask, True, precision)).half()
    loader = as_mappings(batches)
    layers = model.config.num_hidden_layers
    heads = torch.zeros(layers, model.config.heads_of(0), device=model.device)
    neurons = torch.zeros(layers, model.config.intermediate_size_of(0), device=model.device)
    if loader:
        heads, neurons = scorer.scores(loader)
    own = sum(len(batch["input_ids"]) for batch in loader)
    sums = torch.cat([own * heads.flatten(), own * neurons.flatten(), heads.new_tensor([own])])
    total = sum_over_ranks(sums).cpu()
    instances = int(total[-1])
    if not instances:
        raise ConfigError(
            "the data to score with has no masked position, or no label; name a corpus with text "
            "in it, or score by magnitude, which reads none"
        )
    of_heads, of_neurons = torch.split(total[:-1] / instances, [heads.numel(), neurons.numel()])
    return Scores(
        "textpruner_logits" if use_logits else "textpruner",
        tuple(of_heads.view_as(heads)),
        tuple(of_neurons.view_as(neurons)),
        instances,
    )


class TransformerPruner(FrugalPruner):
    """TextPruner's `TransformerPruner` for LERT: cuts by masks, or by its own iterations.

    What is handed in stays as it is; `model` is what is left of a copy of it, and `head_mask` and
    `ffn_mask` say what that is.
    """

    def __init__(
        self,
        model: LertForPreTraining,
        transformer_pruning_config: TransformerPruningConfig | None = None,
        *,
        tasks: Sequence[str] = (),
        precision: Precision = "fp32",
    ) -> None:
        """Take a model and what is wanted of it.

        Args:
            model: On the device to compute on; as many heads in every layer, and as many neurons.
            transformer_pruning_config: TextPruner's; where a target is None, all of its kind stay.
            tasks: Linguistic tasks whose losses count beside that of MLM.
            precision: As in `importance`.

        Raises:
            ConfigError: the model is uneven, or a target cannot be met.
        """
        assert set(tasks) <= set(model.config.tasks), (tasks, model.config.tasks)
        refuse_uneven(model.config)
        config = _resolved(transformer_pruning_config or TransformerPruningConfig(), model.config)
        super().__init__(copy.deepcopy(model), config, masked_rows(tasks), precision)
        self.model = self.model.lert

    def prune(
        self,
        dataloader: Iterable[Batch] | None = None,
        *,
        head_mask: Tensor | None = None,
        ffn_mask: Tensor | None = None,
        keep_shape: bool = False,
    ) -> LertForPreTraining:
        """Prune `model` and return it.

        Args:
            dataloader: Masked batches for the scores of iterative mode.
            head_mask: [layers, heads] of masks mode, 1 for what stays; None leaves all heads.
            ffn_mask: [layers, neurons], the same.
            keep_shape: Set weights to zero where the shape would change.

        Raises:
            ConfigError: masks mode without a mask or with one that does not fit, iterative mode
                without data, or a model that is already uneven.
        """
        refuse_uneven(self.model.config)
        mode = self.transformer_pruning_config.pruning_method
        self.base_model = self.model = self.as_bert(self.model)
        self.head_mask = self.ffn_mask = None  # not those of an earlier call
        try:
            if mode == "iterative":
                loader = as_mappings(dataloader or ())
                if not loader:
                    raise ConfigError(
                        "pruning_method = iterative: its scores need data with a masked position; "
                        "hand in batches, or masks with pruning_method = masks"
                    )
                with tempfile.TemporaryDirectory(prefix="textpruner") as self.output_dir:
                    self.iterative_pruning(
                        loader, None, None, keep_shape, save_model=False, rewrite_cache=True
                    )
            elif head_mask is None and ffn_mask is None:
                raise ConfigError(
                    "pruning_method = masks: there is none; give head_mask, ffn_mask or both"
                )
            else:
                self.prune_with_masks(head_mask, ffn_mask, keep_shape, set_masks=True)
        finally:
            self.base_model = self.model = self.model.lert
        return self.model  # type: ignore[no-any-return]

    def prune_with_masks(
        self,
        head_mask: Tensor | None = None,
        ffn_mask: Tensor | None = None,
        keep_shape: bool = False,
        set_masks: bool = False,
        save_model: bool = False,
    ) -> None:
        """Cut what the masks leave out, or call TextPruner's, which sets it to zero."""
        lert = self.model.lert
        heads = self.head_mask if head_mask is None else head_mask
        neurons = self.ffn_mask if ffn_mask is None else ffn_mask
        left = Cut(
            None if heads is None else tuple(tuple(row) for row in heads.bool().tolist()),
            None if neurons is None else tuple(neurons.bool().cpu()),
        )
        kept(lert.config, left)  # refuses masks that do not fit
        if keep_shape:
            super().prune_with_masks(head_mask, ffn_mask, True, set_masks, False)
            return
        if set_masks:
            self.head_mask, self.ffn_mask = heads, neurons
        self.keep_shape = False
        self.model.lert = cut(lert, left)

    def save_model(
        self, folder: Path, tokenizer_folder: Path, run: Mapping[str, Any] | None = None
    ) -> None:
        """Write `model` as a model folder, which loads whatever its shape.

        Args:
            folder: Written whole.
            tokenizer_folder: A model or corpus folder with the model's tokenizer.
            run: Content of run.json.

        Raises:
            ModelError: the tokenizer is not that of the model.
        """
        model_dir.save(self.model, tokenizer_folder, folder, run)


def _resolved(wanted: TransformerPruningConfig, config: LertConfig) -> TransformerPruningConfig:
    """Return TextPruner's configuration with targets that are numbers and can be met.

    TextPruner itself keeps all where the target is 0, and prunes nothing where it is too large.
    """
    targets = {}
    for key, most in (
        ("target_num_of_heads", config.heads_of(0)),
        ("target_ffn_size", config.intermediate_size_of(0)),
    ):
        target = getattr(wanted, key)
        if target is not None and not 1 <= target <= most:
            raise ConfigError(
                f"{key} = {target}: a layer has {most}; ask for 1 to {most}, or None for all"
            )
        targets[key] = most if target is None else target
    neurons, most = targets["target_ffn_size"], config.intermediate_size_of(0)
    if neurons % wanted.multiple_of or most % wanted.multiple_of:
        raise ConfigError(
            f"target_ffn_size = {neurons}: it and the {most} neurons that a layer has must be "
            f"multiples of multiple_of = {wanted.multiple_of}"
        )
    if wanted.n_iters < 1:
        raise ConfigError(f"n_iters = {wanted.n_iters}: ask for at least one iteration")
    return dataclasses.replace(wanted, **targets)
