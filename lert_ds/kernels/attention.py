"""Attention for a processor, with dropout, a block of rows at a time (`cpu/attention.h`)."""

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from lert_ds.kernels import cpu_ops
from lert_ds.kernels.seed import draw_seed
from lert_ds.machine import multiplies_bf16

NAME = "lert_fused"
"""Name of the attention among transformers' implementations."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention's output, [batch, length, heads, size], and no probabilities.

    Args:
        module: The layer that asks.
        query: [batch, heads, length, size].
        key: The same.
        value: The same.
        attention_mask: Bool [batch or 1, 1, length or 1, length], true where attention may go;
            or None. SDPA takes its place where a query may see several stretches of keys.
        dropout: Probability that an attention probability is dropped.
        scaling: Factor on the products, by default 1 / sqrt(size).
        **kwargs: What other implementations take.
    """
    takes = query.device.type == "cpu" and query.dtype != torch.float64  # it computes in float32
    native = cpu_ops.load() if takes else None
    ranges = None
    if native is not None and attention_mask is not None:
        ranges = ranges_of(attention_mask, query.shape[0], query.shape[2])
    alike = query.shape == key.shape == value.shape
    if native is None or not alike or (ranges is None and attention_mask is not None):
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    # [batch, length, 3, heads, size]
    packed = torch.stack([query, key, value]).permute(1, 3, 0, 2, 4)
    return attend_packed(native, packed, ranges, dropout=dropout, scaling=scaling), None


def attend_packed(
    native: Any,
    packed: Tensor,
    ranges: Tensor | None,
    *,
    dropout: float,
    scaling: float | None = None,
) -> Tensor:
    """Return attention's output, [batch, length, heads, size].

    Args:
        native: What `cpu_ops.load` returns.
        packed: [batch, length, 3, heads, size], queries, keys and values of one projection.
        ranges: What `ranges_of` returns.
        dropout: Probability that an attention probability is dropped.
        scaling: Factor on the products, by default 1 / sqrt(size).
    """
    scaling = packed.shape[-1] ** -0.5 if scaling is None else scaling
    seed = draw_seed() if dropout else 0
    own = packed if _stays_in_bf16(native, packed) else packed.float()
    attended: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        native, own, ranges, dropout, scaling, seed
    )
    return attended.to(packed.dtype)


def _stays_in_bf16(native: Any, packed: Tensor) -> bool:
    """Return whether products are in bf16, with float32 sums: instructions, and an even size."""
    pairs = packed.dtype == torch.bfloat16 and packed.shape[-1] % 2 == 0
    return pairs and _multiplies_bf16(native)


@functools.cache
def _multiplies_bf16(native: Any) -> bool:
    return multiplies_bf16(torch.device("cpu")) and bool(native.multiplies_bfloat16())


def function_of(implementation: str) -> Any:
    """Return transformers' attention function of a name."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


_last: tuple[Any, int, Tensor | None] = (lambda: None, 0, None)
"""The mask that `ranges_of` saw last, by a weak reference, its version, and what it returned."""


def ranges_of(mask: Tensor, batch: int, length: int) -> Tensor | None:
    """Return int32 [batch, length, 2], the first key of each query and the one behind its last.

    None where some query may see keys in several stretches, where heads differ, or where the mask
    is added and not asked. All layers ask for the same mask; its ranges are found once (26 ms for 8
    instances of 512 tokens on one core, a tenth of a layer's attention).

    Args:
        mask: Bool [batch or 1, 1, length or 1, length], true where attention may go.
        batch: Instances.
        length: Their tokens.
    """
    global _last
    if mask.is_inference():  # has no version, and so may change unseen
        return _find_ranges(mask, batch, length)
    seen, version, ranges = _last
    if seen() is not mask or version != mask._version:
        ranges = _find_ranges(mask, batch, length)
        _last = weakref.ref(mask), mask._version, ranges
    return ranges


def _find_ranges(mask: Tensor, batch: int, length: int) -> Tensor | None:
    fits = mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[3] == length
    if mask.dtype != torch.bool or not fits:
        return None
    allowed = mask[:, 0]
    count = allowed.sum(-1)
    first = allowed.int().argmax(-1)
    last = length - allowed.flip(-1).int().argmax(-1)
    if bool(((last - first != count) & (count > 0)).any()):
        return None
    stretches = torch.stack([first, torch.where(count > 0, last, first)], dim=-1)
    return stretches.to(torch.int32).expand(batch, length, 2).contiguous()


class _Attention(torch.autograd.Function):
    """dropout(softmax(query · keyᵀ · scaling)) · value: [batch, length, heads, size]."""

    @staticmethod
    def forward(
        context: Any,
        native: Any,
        packed: Tensor,
        ranges: Tensor | None,
        dropout: float,
        scaling: float,
        seed: int,
    ) -> Tensor:
        packed = _rows(packed)
        output: Tensor
        output, log_sums = native.attention_forward(*_parts(packed), ranges, dropout, scaling, seed)
        context.native, context.numbers = native, (dropout, scaling, seed)
        context.save_for_backward(packed, output, log_sums, ranges)
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        packed, output, log_sums, ranges = context.saved_tensors
        of_packed = torch.empty(packed.shape, dtype=packed.dtype)
        context.native.attention_backward(
            gradient.contiguous(), *_parts(packed), output, log_sums, ranges, *context.numbers,
            *_parts(of_packed),
        )  # fmt: skip
        return None, of_packed, None, None, None, None


def _parts(packed: Tensor) -> tuple[Tensor, ...]:
    """Return query, key and value, [batch, heads, length, size], as views."""
    return tuple(part.transpose(1, 2) for part in packed.unbind(2))


def _rows(tensor: Tensor) -> Tensor:
    """Return a tensor whose last dimension lies together, as BLAS takes it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
