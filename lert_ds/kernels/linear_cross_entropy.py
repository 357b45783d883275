"""A decoder and its cross entropy together: the logits of a few rows at a time, and none kept.

The plain way keeps [masked, 21128] logits, their float32 copy, its log-softmax and its gradient:
for 32 instances of 512 tokens 0.7 GB. Here each piece of rows is multiplied, measured, turned into
its gradient in place and multiplied back in the forward pass already, as in Liger (Hsu et al. 2024,
arXiv 2410.10989); the backward pass only scales.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE_BYTES = 64 * 2**20
"""Of the logits in float32 that are there at a time."""


class RowSums(NamedTuple):
    """Sums over rows whose label is known."""

    loss: Tensor
    """Scalar, float32: of their cross entropies; has a gradient."""
    hits: Tensor
    """Scalar, int64: rows whose label has the largest logit."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> RowSums:
    """Return the cross entropy of `hidden · weightᵀ + bias` to `labels`, summed over rows.

    Args:
        hidden: [rows, size].
        weight: [classes, size].
        bias: [classes].
        labels: int64 [rows], each a class.
    """
    loss, hits = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, torch.is_grad_enabled()
    )
    return RowSums(loss, hits)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            cast = hidden.to(half), weight.to(half), bias.to(half)
        else:
            cast = hidden, weight, bias
        with torch.autocast(device, enabled=False):
            dtypes = hidden.dtype, weight.dtype, bias.dtype
            return _forward(context, *cast, labels, dtypes, wanted=wanted)

    @staticmethod
    @once_differentiable
    def backward(context: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient.mul_(of_loss) for gradient in context.saved_tensors), None, None


def _forward(
    context: Any,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    dtypes: tuple[torch.dtype, ...],
    *,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Compute sums and, where they are wanted, gradients: an evaluation asks for none."""
    wanted = wanted and any(context.needs_input_grad[:3])
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    hits = torch.zeros((), dtype=torch.int64, device=hidden.device)
    context.mark_non_differentiable(hits)
    if wanted:
        of_hidden = torch.empty_like(hidden, dtype=dtypes[0])
        # float32 sums of the pieces: in bf16 the sum of many would keep two digits.
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_bias = torch.zeros_like(bias, dtype=torch.float32)
    rows = max(1, PIECE_BYTES // (4 * weight.shape[0]))
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        logits = torch.addmm(bias, hidden[part], weight.t()).float()
        truth = labels[part, None]
        hits += (logits.argmax(-1, keepdim=True) == truth).sum()
        at_truth = logits.gather(1, truth)
        log_sums = logits.logsumexp(-1, keepdim=True)
        loss += (log_sums - at_truth).sum()
        if not wanted:
            continue
        slopes = logits.sub_(log_sums).exp_()  # in place: softmax, and then minus one at the truth
        slopes.scatter_add_(1, truth, torch.full_like(at_truth, -1.0))
        of_bias += slopes.sum(0)
        slopes = slopes.to(hidden.dtype)
        of_hidden[part] = slopes @ weight
        if slopes.dtype == torch.float32:
            of_weight.addmm_(slopes.t(), hidden[part])
        else:
            of_weight += slopes.t() @ hidden[part]
    if wanted:
        context.save_for_backward(of_hidden, of_weight.to(dtypes[1]), of_bias.to(dtypes[2]))
    return loss, hits
