"""Attention over documents of different lengths on a GPU, without a token of padding.

PyTorch's own flash attention for variable lengths, with dropout: instances are laid end to end and
`cu_seqlens` says where each document begins, so a query meets the keys of its document alone and
the products of the others are never computed. Elsewhere the same mask is given to SDPA.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "lert_varlen"
"""Name of the attention among transformers' implementations."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return attention's output, [batch, length, heads, size], and no probabilities.

    Args:
        module: The layer that asks.
        query: [batch, heads, length, size], in half precision.
        key: The same.
        value: The same.
        attention_mask: Bool [batch, 1, length, length], what SDPA would take; it is not read where
            there is `cu_seqlens`.
        dropout: Probability that an attention probability is dropped.
        scaling: Factor on the products, by default 1 / sqrt(size).
        cu_seqlens: int32 [documents + 1], places in the flattened [batch * length] where documents
            begin, and the end; none is longer than `length`.
        **kwargs: What other implementations take.
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if cu_seqlens is None or query.device.type != "cuda" or not half:
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    batch, heads, length, size = query.shape
    flat = (
        part.transpose(1, 2).reshape(batch * length, heads, size) for part in (query, key, value)
    )
    attended = torch.ops.aten._flash_attention_forward(
        *flat, cu_seqlens, cu_seqlens, length, length, dropout, False, False, scale=scaling
    )[0]
    return attended.view(batch, length, heads, size), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
