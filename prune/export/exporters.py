"""What the exporters of transformers are given, whatever they write, and how they keep quiet."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

AXES = {
    "input_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", "sequence_length"),
    "token_type_ids": ("batch_size", "sequence_length"),
    "masked_positions": ("masked_count",),
}
"""Inputs of a graph, int64, and the names of their axes, all of them open."""
_TAG_LOGITS = "tag_logits."


def sample_inputs(model: PreTrainedModel, *, masked_positions: bool) -> dict[str, Tensor]:
    """Return two texts, one of them padded: tracing sees that a mask does something."""
    length = max(min(16, model.config.max_position_embeddings - 1), 2)
    ids = torch.ones(2, length, dtype=torch.int64)
    real = torch.ones_like(ids)
    real[1, length // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": real, "token_type_ids": torch.zeros_like(ids)}
    if masked_positions:
        inputs["masked_positions"] = torch.tensor([0, 1, length])
    return inputs


def dynamic_shapes(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Return which axes of `inputs` stay open, as `torch.export` asks for them."""
    longest = model.config.max_position_embeddings
    sizes = {
        "batch_size": torch.export.Dim("batch_size"),
        "sequence_length": torch.export.Dim("sequence_length", max=longest),
        "masked_count": torch.export.Dim("masked_count"),
    }
    return {name: {axis: sizes[size] for axis, size in enumerate(AXES[name])} for name in inputs}


def output_name(traced: str) -> str:
    """Return the name that an output has in our graphs: `<task>_logits` for `tag_logits.<task>`."""
    if traced.startswith(_TAG_LOGITS):
        return f"{traced.removeprefix(_TAG_LOGITS)}_logits"
    return traced


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the steps and warnings of the exporters: nothing in them is the user's to mend.

    They say that versions differ from those the exporters were tested with, and that torchvision is
    missing; what comes out is compared with PyTorch.
    """
    verbosity = transformers_logging.get_verbosity()
    disabled = logging.root.manager.disable
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)
