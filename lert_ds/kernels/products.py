"""Matrix products in float32 by oneDNN, where PyTorch's BLAS leaves the processor half idle.

PyTorch multiplies float32 by MKL, which on other processors than Intel's stays with AVX2: 107
GFLOP/s a core of an EPYC with AVX-512, where oneDNN's kernels, which PyTorch has as well, reach 240
(with AVX2 alone 109 and 126). In bf16 PyTorch takes oneDNN by itself.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lert_ds.kernels import cpu_ops

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Input [..., inputs], weight [outputs, inputs], bias [outputs] or None → [..., outputs]."""


@functools.cache
def has_onednn() -> bool:
    """Return whether PyTorch was built with oneDNN."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies float32 faster: on x86 that is not Intel's."""
    path = Path("/proc/cpuinfo")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (is_x86 and path.is_file() and torch._C.has_mkl and has_onednn()):
        return False
    return "GenuineIntel" not in path.read_text("utf-8")


def takes_onednn(asked: str) -> bool:
    """Return whether float32 on a processor is multiplied by oneDNN, by `kernels.products`."""
    return has_onednn() and (asked == "onednn" or (asked == "auto" and prefers_onednn()))


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `inputs · weightᵀ + bias`; what is not float32 on a processor PyTorch multiplies.

    Args:
        inputs: [..., inputs].
        weight: [outputs, inputs].
        bias: [outputs], or None.
    """
    takes = (
        inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and inputs.numel() > 0
        and weight.numel() > 0
    )
    if not takes:
        return functional.linear(inputs, weight, bias)
    output: Tensor = _Product.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return output


def linear_of(module: nn.Module) -> Linear:
    """Return the function that a linear module multiplies with."""
    return onednn_linear if isinstance(module, OneDnnLinear) else functional.linear


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, multiplied by oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input · weightᵀ + bias`, [..., outputs].

        Args:
            input: [..., inputs].
        """
        return onednn_linear(input, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Let the linear modules of a model multiply by oneDNN, in place; no weight changes."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `left · rightᵀ + bias` of matrices."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product


def _weight_gradient(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Return `gradientᵀ · inputs`, [outputs, inputs], of [rows, outputs] and [rows, inputs].

    oneDNN's left side has to be contiguous: what is smaller is transposed, and the result after it
    where that is the inputs.
    """
    (rows, outputs), width = gradient.shape, inputs.shape[1]
    if rows * outputs > rows * width + outputs * width:
        return _transposed(_multiply(_transposed(inputs), gradient.t()))
    return _multiply(_transposed(gradient), inputs.t())


def _transposed(matrix: Tensor) -> Tensor:
    native = cpu_ops.load()
    if native is None or matrix.stride(1) != 1:
        return matrix.t().contiguous()
    transposed: Tensor = native.transposed(matrix)
    return transposed


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(inputs, weight)
        return _multiply(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = context.saved_tensors
        of_inputs = of_weight = of_bias = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        if context.needs_input_grad[0]:
            of_inputs = _multiply(flat, weight.t()).view(inputs.shape)
        if context.needs_input_grad[1]:
            of_weight = _weight_gradient(flat, inputs.reshape(-1, inputs.shape[-1]))
        if context.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_inputs, of_weight, of_bias
