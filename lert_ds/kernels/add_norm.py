"""Dropout, sum and LayerNorm in one pass over memory, and bias and GELU in another."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lert_ds.kernels.seed import draw_seed


def add_norm(
    native: Any, inputs: Tensor, residual: Tensor, norm: nn.LayerNorm, dropout: float
) -> Tensor:
    """Return LayerNorm(dropout(inputs) + residual), [..., hidden], in the residual's type.

    Args:
        native: What `cpu_ops.load` returns.
        inputs: [..., hidden].
        residual: The same.
        norm: Whose weight and bias.
        dropout: Probability that a unit of `inputs` is dropped.
    """
    weight, bias = norm.weight.to(residual.dtype), norm.bias.to(residual.dtype)
    seed = draw_seed() if dropout else 0
    normed: Tensor = _AddNorm.apply(  # type: ignore[no-untyped-call]
        native, inputs.to(residual.dtype), residual, weight, bias, dropout, norm.eps, seed
    )
    return normed


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        native: Any,
        inputs: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        dropout: float,
        epsilon: float,
        seed: int,
    ) -> Tensor:
        output: Tensor
        output, summed, statistics = native.add_norm_forward(
            inputs.contiguous(), residual.contiguous(), weight, bias, dropout, epsilon, seed
        )
        context.native, context.numbers = native, (dropout, seed)
        context.save_for_backward(summed, statistics, weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = context.native.add_norm_backward(
            gradient.contiguous(), *context.saved_tensors, *context.numbers
        )
        return None, *found, None, None, None


def bias_gelu(native: Any, inputs: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(inputs + bias), the exact one, [..., width].

    Args:
        native: What `cpu_ops.load` returns.
        inputs: [..., width].
        bias: [width].
    """
    active: Tensor = _BiasGelu.apply(  # type: ignore[no-untyped-call]
        native, inputs, bias.to(inputs.dtype)
    )
    return active


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, native: Any, inputs: Tensor, bias: Tensor) -> Tensor:
        inputs = inputs.contiguous()
        context.native = native
        context.save_for_backward(inputs, bias)
        active: Tensor = native.bias_gelu_forward(inputs, bias)
        return active

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *context.native.bias_gelu_backward(
            gradient.contiguous(), *context.saved_tensors
        )


def plain_add_norm(
    inputs: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    dropout: float,
) -> Tensor:
    """Return what `add_norm` returns, by PyTorch: what a compiler fuses, and what tests hold to."""
    summed = functional.dropout(inputs, dropout) + residual
    return functional.layer_norm(summed, weight.shape, weight, bias, epsilon)


def plain_bias_gelu(inputs: Tensor, bias: Tensor) -> Tensor:
    """Return what `bias_gelu` returns, by PyTorch."""
    return functional.gelu(inputs + bias)
