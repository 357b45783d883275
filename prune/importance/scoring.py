"""Which scores of heads and neurons, by name: ours, or TextPruner's."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedModel

from lert_ds.config import Config
from prune.importance import scores
from prune.importance.rows import Ask
from prune.importance.scores import Precision, Scores

NEEDS_WHOLE_SHAPE = frozenset({"textpruner", "textpruner_logits"})
"""Methods for models that have as many heads and neurons in every layer, at least one of each."""


class ScoringConfig(Config):
    """How heads and neurons are scored.

    `fisher` is the better one: it takes no labels, and a head's score follows what the loss does
    without that head more closely. TextPruner adds the gradients of a batch up before it takes
    their absolute value, so its instances cancel, the more of them there are in a batch; and its
    self-supervised scores compare the model with itself. Its scores are the default because they
    are what a user of TextPruner expects.
    """

    method: Literal["textpruner", "textpruner_logits", "fisher", "gate_gradient", "magnitude"] = (
        "textpruner"
    )
    """`textpruner` and `textpruner_logits` are TextPruner's with labels and with `use_logits`;
    `fisher` (labels drawn from the model: the corpus needs none), `gate_gradient` (labels of the
    corpus) and `magnitude` (the weights alone) are ours."""
    precision: Precision = "fp32"
    """What matrices are multiplied in; scores are added up in fp32 either way. Of
    `textpruner_logits` only what the model is compared with is in this precision."""
    seed: int = Field(0, ge=0, lt=2**62)
    """Of the labels that `fisher` draws."""
    instances: int = Field(512, ge=1)
    """How many masked instances are read, in all processes together."""
    batch_size: int = Field(16, ge=1)
    """Instances a batch in one process; TextPruner's scores depend on it, ours do not."""
    file: Path | None = None
    """Scores are kept in this file and read again when nothing that decides them has changed."""


def score(
    model: PreTrainedModel,
    batches: Iterable[Any],
    config: ScoringConfig,
    ask: Ask | None = None,
    *,
    ffn_even_masking: bool = True,
    reference: PreTrainedModel | None = None,
) -> Scores:
    """Return how much each head and neuron of `model` matters, by the method of `config`.

    The model is as before afterwards. All processes must call it, each with its own batches.

    Args:
        model: Whole weights, on the device to compute on.
        batches: This rank's share of masked instances, or of a task's; `magnitude` reads none.
        config: `method`, `precision` and `seed` are read.
        ask: What a batch asks of the model, masked words alone where it is None; not of
            `textpruner_logits`.
        ffn_even_masking: Whether every layer is to keep as many neurons, for TextPruner's scores of
            neurons, as in `prune.importance.pruner.importance`.
        reference: For `textpruner_logits`, as in `prune.importance.pruner.importance`.

    Raises:
        ConfigError: no batch, of any rank, had a masked position; TextPruner is not installed; or
            the method is of NEEDS_WHOLE_SHAPE and the model has uneven or empty layers.
    """
    if config.method == "textpruner" or config.method == "textpruner_logits":
        from prune.importance.pruner import (
            importance,  # needs TextPruner, which is installed on demand
        )

        return importance(
            model,
            batches,
            ask,
            use_logits=config.method == "textpruner_logits",
            precision=config.precision,
            ffn_even_masking=ffn_even_masking,
            reference=reference,
        )
    return scores.score(
        model, batches, config.method, ask, precision=config.precision, seed=config.seed
    )
