"""Dropout on a processor core at a quarter of its cost.

torch draws one number after the other for each unit: a fifth of a training step of LERT-small, most
of it for attention probabilities. Here 64 random bits make four units' 16-bit lots, which compare
with the probability at once. The probability is rounded to a 65,536th (0.1 becomes 0.100006, and
the scale with it, so expectations are exact); everything else is as in `nn.Dropout`, and the masks
are drawn from torch's generator, so a seed and gradient checkpointing repeat them. Attention keeps
its probabilities for the backward pass and draws their mask again: at length 512 that is 400 MB
less for 2,048 tokens of LERT-small than four tensors of their size a layer.

On a GPU there is nothing to gain: its generator is parallel and its attention fused.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lert_ds.kernels.seed import draw_seed

NAME = "lert_lots"
"""Name of the attention among transformers' implementations."""

_LOTS = 2**16


def scaled_keep(shape: Sequence[int], probability: float, dtype: torch.dtype) -> Tensor:
    """Return a tensor of `shape` that is 0 with `probability` and elsewhere 1 / (1 - probability).

    Draws one number from torch's generator of the CPU; the rest follows from it.
    """
    threshold = round(probability * _LOTS)
    return _keep_of(draw_seed(), shape, threshold, dtype)


def _keep_of(seed: int, shape: Sequence[int], threshold: int, dtype: torch.dtype) -> Tensor:
    units = int(np.prod(shape))
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(0, 2**64, size=-(-units // 4), dtype=np.uint64)
    lots = torch.from_numpy(words.view(np.int16)[:units])
    keep = (lots >= threshold - _LOTS // 2).to(dtype)
    return keep.mul_(_LOTS / (_LOTS - threshold)).view(*shape)


class CheapDropout(nn.Dropout):
    """`nn.Dropout` with cheap masks on the CPU; elsewhere it is `nn.Dropout`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs, some of them 0 and the others scaled, in training."""
        if not self.training or self.p == 0 or inputs.device.type != "cpu":
            return super().forward(inputs)
        return inputs * scaled_keep(inputs.shape, self.p, inputs.dtype)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return attention's output, [batch, length, heads, size], and no probabilities.

    Without dropout, or off the CPU, it is SDPA. With dropout SDPA takes its plain path on a CPU,
    and this is the same computation.

    Args:
        module: The layer that asks.
        query: [batch, heads, length, size].
        key: The same.
        value: The same.
        attention_mask: [batch, 1, length, length], true where attention may go, or None.
        dropout: Probability that an attention probability is dropped.
        scaling: Factor on the products, by default 1 / sqrt(size).
        **kwargs: What other implementations take.
    """
    if dropout == 0 or query.device.type != "cpu":
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, attention_mask, dropout, scaling
    )
    return attended.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    """softmax(query · keyᵀ · scaling), some dropped, times value: [batch, heads, length, size]."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float,
        scaling: float,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            scores = (query * scaling) @ key.transpose(-1, -2)
            if attention_mask is not None:
                scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
            probabilities = torch.softmax(scores, dim=-1)
            context.seed, context.threshold = draw_seed(), round(dropout * _LOTS)
            context.scaling = scaling
            context.save_for_backward(query, key, value, probabilities)
            kept = _keep_of(context.seed, scores.shape, context.threshold, scores.dtype)
            attended: Tensor = kept.mul_(probabilities) @ value
            return attended

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities = context.saved_tensors
        keep = _keep_of(context.seed, probabilities.shape, context.threshold, value.dtype)
        of_kept = gradient @ value.transpose(-1, -2)
        of_scores = torch.ops.aten._softmax_backward_data(
            of_kept.mul_(keep), probabilities, -1, probabilities.dtype
        )
        of_value = keep.mul_(probabilities).transpose(-1, -2) @ gradient
        of_query = (of_scores @ key).mul_(context.scaling)
        of_key = (of_scores.transpose(-1, -2) @ query).mul_(context.scaling)
        return of_query, of_key, of_value, None, None, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_cheap_masks(model: nn.Module) -> None:
    """Give every dropout of `model` the masks of this module, in place; no weight changes."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CheapDropout
