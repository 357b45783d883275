"""The exact GELU for a GPU's compiler, with an error function that memory has to wait less for.

PyTorch's erf keeps an H200 from its memory's rate: in LERT-large's feed-forward part the compiled
GELU moves 2.6 TB/s and its gradient 2.8, where 4.3 are there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_INVERSE_ROOT_2, _INVERSE_ROOT_2_PI = 0.7071067811865476, 0.3989422804014327


def fast_bias_gelu(inputs: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(inputs + bias), [..., width], to within 2e-7 of it before it is rounded.

    Args:
        inputs: [..., width].
        bias: [width].
    """
    active: Tensor = _Gelu.apply(inputs + bias)  # type: ignore[no-untyped-call]
    return active


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cumulative normal distribution and its density at x.

    Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
    """
    z = x.abs() * _INVERSE_ROOT_2
    exponential = torch.exp(-z * z)
    t = 1.0 / (1.0 + 0.3275911 * z)
    p = t * 1.061405429 - 1.453152027
    p = p * t + 1.421413741
    p = p * t - 0.284496736
    p = p * t + 0.254829592
    upper = 0.5 * p * t * exponential
    return torch.where(x < 0, upper, 1.0 - upper), _INVERSE_ROOT_2_PI * exponential


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        context.save_for_backward(inputs)
        x = inputs.float()
        return (x * _gaussian(x)[0]).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (inputs,) = context.saved_tensors
        x = inputs.float()
        cumulative, density = _gaussian(x)
        slope: Tensor = (gradient.float() * (cumulative + x * density)).to(gradient.dtype)
        return slope
