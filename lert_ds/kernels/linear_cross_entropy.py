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
from torch.nn import functional

from lert_ds.kernels import cpu_ops
from lert_ds.kernels.products import Linear

PIECE_BYTES = 64 * 2**20
"""Of the logits in float32 that are there at a time."""


class RowSums(NamedTuple):
    """Sums over rows whose label is known."""

    loss: Tensor
    """Scalar, float32: of their cross entropies; has a gradient."""
    hits: Tensor
    """Scalar, int64: rows whose label has the largest logit."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    linear: Linear = functional.linear,
) -> RowSums:
    """Return the cross entropy of `hidden · weightᵀ + bias` to `labels`, summed over rows.

    Args:
        hidden: [rows, size].
        weight: [classes, size].
        bias: [classes].
        labels: int64 [rows], each a class.
        linear: What multiplies.
    """
    loss, hits = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, linear, torch.is_grad_enabled()
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
        linear: Linear,
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
            return _forward(context, *cast, labels, dtypes, linear, wanted=wanted)

    @staticmethod
    @once_differentiable
    def backward(context: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient.mul_(of_loss) for gradient in context.saved_tensors), None, None, None


def _forward(
    context: Any,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    dtypes: tuple[torch.dtype, ...],
    linear: Linear,
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
        logits = linear(hidden[part], weight, bias)
        measured = _native(logits, labels[part], wanted) or _measure(logits, labels[part], wanted)
        loss += measured.losses.sum()
        hits += measured.hits.sum()
        if not wanted:
            continue
        of_bias += measured.of_bias
        slopes = measured.slopes.to(hidden.dtype)
        of_hidden[part] = linear(slopes, weight.t(), None)
        of_weight += linear(slopes.t(), hidden[part].t(), None)
    if wanted:
        context.save_for_backward(of_hidden, of_weight.to(dtypes[1]), of_bias.to(dtypes[2]))
    return loss, hits


class _Measured(NamedTuple):
    """What rows of logits say of their labels."""

    losses: Tensor
    """float32 [rows]: cross entropies."""
    hits: Tensor
    """Bool [rows]: the label has the largest logit."""
    slopes: Tensor
    """[rows, classes]: gradients; where none are wanted they mean nothing."""
    of_bias: Tensor
    """float32 [classes]: the sums of `slopes` over rows."""


def _native(logits: Tensor, labels: Tensor, wanted: bool) -> _Measured | None:
    """Measure by the processor's kernel, where there is one; `logits` become their gradients."""
    if logits.device.type != "cpu" or logits.dtype == torch.float64:
        return None
    if (native := cpu_ops.load()) is None:
        return None
    losses, hits, of_bias = native.cross_entropy(logits, labels.contiguous(), wanted)
    return _Measured(losses, hits, logits, of_bias)


def _measure(logits: Tensor, labels: Tensor, wanted: bool) -> _Measured:
    """Measure by PyTorch."""
    logits, truth = logits.float(), labels[:, None]
    hits = logits.argmax(-1) == labels
    at_truth = logits.gather(1, truth)
    log_sums = logits.logsumexp(-1, keepdim=True)
    losses = (log_sums - at_truth)[:, 0]
    if not wanted:
        return _Measured(losses, hits, logits, logits[:0].sum(0))
    slopes = logits.sub_(log_sums).exp_()  # in place: softmax, and then minus one at the truth
    slopes.scatter_add_(1, truth, torch.full_like(at_truth, -1.0))
    return _Measured(losses, hits, slopes, slopes.sum(0))
