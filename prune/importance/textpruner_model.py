"""TextPruner's scoring on LERT: its own formulas, called, and what has to stand around them.

Yang et al. 2022, arXiv 2203.15996, version 1.1. The score of a head is |dL/dgate| of a gate on what
the head hands on, L being the mean loss of a batch; added over batches, divided by instances. That
of a neuron is the same, plus, where layers are to stay even, |dL/dgate| of a gate before its
activation. Both are read off weights and their gradients. Around it:

    a BERT's names               a LERT behind them; the loss is LERT's own
    gradients of all weights     of the four tensors a layer that are read
    a copy in half precision     in fp32 or bf16: half is slow on a processor, and may overflow
    a folder that it writes to   one that is gone afterwards
    a progress bar               where somebody looks at it
"""

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lert_ds.configuration_lert import LertConfig
from lert_ds.distributed import is_main
from lert_ds.errors import ConfigError
from lert_ds.finetune.batches import TaskBatch
from lert_ds.objective import Batch
from prune.importance.rows import Ask, mean_loss
from prune.importance.scores import Precision, differentiating

# It tells of each pass over the data, of sentencepiece, which no BERT needs, and that what is
# uneven cannot be saved, which here it can.
logging.getLogger("textpruner").setLevel(logging.ERROR)

try:
    import textpruner
    from textpruner import TransformerPruningConfig
    from textpruner.pruners import transformer_pruner
except ImportError as error:
    raise ConfigError(
        f"scoring by TextPruner needs its package, which cannot be imported ({error}); "
        "pip install 'lert-ds[prune]' and pip install --no-deps textpruner==1.1.post2, "
        "or score by fisher"
    ) from error

__all__ = ["AsBert", "FrugalPruner", "TransformerPruningConfig", "as_mappings", "refuse_uneven"]


class AsBert(nn.Module):
    """A LERT in the form that TextPruner reads: a BERT that is its own base model."""

    base_model_prefix = "base_model"
    """Of an attribute that is not there."""

    def __init__(
        self, lert: PreTrainedModel, ask: Ask, use_logits: bool, precision: Precision
    ) -> None:
        """Put `lert` behind it.

        Args:
            lert: On its device.
            ask: What a batch asks of it.
            use_logits: Give logits, not the loss.
            precision: Of the loss; where logits are asked for, of the copy that gives labels.
        """
        super().__init__()
        # TextPruner finds the layers by the name of their path.
        self.encoder = lert.base_model.encoder
        self.lert = lert
        self.ask, self.use_logits, self.precision = ask, use_logits, precision
        heads = lert.config.heads_of(0)
        head_size = lert.config.hidden_size // lert.config.num_attention_heads
        self.config = SimpleNamespace(
            model_type="bert",
            num_attention_heads=heads,
            intermediate_size=lert.config.intermediate_size_of(0),
            hidden_size=heads * head_size,  # from which TextPruner takes the size of a head
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.lert.device  # type: ignore[no-any-return]

    def half(self) -> "AsBert":
        """Turn into what gives labels: TextPruner asks a copy for half precision."""
        return self.to(torch.bfloat16) if self.precision == "bf16" else self

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, **rest: Any) -> Any:
        """Return the logits of every position, or the loss of a batch."""
        if self.use_logits:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            if "token_type_ids" in rest:
                inputs["token_type_ids"] = rest["token_type_ids"]
            return {"logits": self.lert(**inputs).logits}
        kind = Batch if "masked_positions" in rest else TaskBatch
        batch = kind(input_ids=input_ids, attention_mask=attention_mask, **rest)
        bf16 = self.precision == "bf16"
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=bf16):
            rows = self.ask(self.lert, batch)
        return {"loss": mean_loss(rows)}


class FrugalPruner(textpruner.TransformerPruner):  # type: ignore[misc]
    """TextPruner's `TransformerPruner`, with its scoring made frugal and quiet."""

    model: Any
    head_mask: Tensor | None
    ffn_mask: Tensor | None

    def __init__(
        self,
        lert: PreTrainedModel,
        config: TransformerPruningConfig,
        ask: Ask,
        precision: Precision,
    ) -> None:
        """Take a model; where `config.use_logits`, a copy of it gives the labels from now on."""
        self.as_bert = partial(AsBert, ask=ask, use_logits=config.use_logits, precision=precision)
        with tempfile.TemporaryDirectory(prefix="textpruner") as scratch:
            super().__init__(
                self.as_bert(lert), config, textpruner.GeneralConfig(str(lert.device), scratch)
            )

    def scores(self, loader: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return TextPruner's scores, [layers, heads] and [layers, neurons]."""
        with_logits = self.transformer_pruning_config.use_logits
        make = self.get_importance_score_with_logits if with_logits else self.get_importance_score
        heads, neurons = make(loader)
        return heads, neurons

    def get_importance_score(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Call TextPruner's, for the loss."""
        with self._frugal():
            return super().get_importance_score(*arguments)  # type: ignore[no-any-return]

    def get_importance_score_with_logits(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Call TextPruner's, for the logits."""
        with self._frugal():
            return super().get_importance_score_with_logits(*arguments)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _frugal(self) -> Iterator[None]:
        weights: list[nn.Parameter] = []
        for layer in self.model.encoder.layer:
            inner, outer = layer.intermediate.dense, layer.output.dense
            weights += [layer.attention.output.dense.weight, inner.weight, inner.bias, outer.weight]
        stock = transformer_pruner.tqdm
        hidden = not (is_main() and sys.stderr.isatty())
        transformer_pruner.tqdm = partial(stock, disable=hidden)
        try:
            with differentiating(self.model.lert, weights):
                yield
        finally:
            transformer_pruner.tqdm = stock


def as_mappings(batches: Iterable[Batch | TaskBatch]) -> list[dict[str, Any]]:
    """Return the batches that have something to predict, as TextPruner hands them to a model."""
    return [
        batch._asdict()
        for batch in batches
        if not isinstance(batch, Batch) or len(batch.masked_positions)
    ]


def refuse_uneven(config: LertConfig) -> None:
    """Refuse a model that TextPruner cannot score.

    Raises:
        ConfigError: its layers are uneven or empty.
    """
    layers = range(config.num_hidden_layers)
    heads = [config.heads_of(layer) for layer in layers]
    neurons = [config.intermediate_size_of(layer) for layer in layers]
    if len(set(heads)) > 1 or len(set(neurons)) > 1 or not (heads[0] and neurons[0]):
        raise ConfigError(
            "TextPruner scores models that have as many heads and neurons in every layer, but this "
            f"one has heads {heads} and neurons {neurons}; score by fisher"
        )
