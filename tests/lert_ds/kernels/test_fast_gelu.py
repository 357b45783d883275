import pytest
import torch
from torch.nn import functional

from lert_ds.kernels.fast_gelu import fast_bias_gelu


def points(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.linspace(-9, 9, 4001).reshape(-1, 1).repeat(1, 3).to(dtype).requires_grad_()
    return inputs, torch.tensor([0.0, 0.3, -2.0], dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_it_is_the_exact_gelu(dtype: torch.dtype, tolerance: float, compiled: bool) -> None:
    function = torch.compile(fast_bias_gelu) if compiled else fast_bias_gelu
    inputs, bias = points(dtype)
    found = function(inputs, bias)
    exact_inputs, exact_bias = (
        (inputs + bias).detach().double().requires_grad_(), torch.zeros(3).double()
    )  # fmt: skip
    expected = functional.gelu(exact_inputs + exact_bias)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    of_inputs, of_bias = torch.autograd.grad(found, (inputs, bias), direction)
    (of_exact,) = torch.autograd.grad(expected, exact_inputs, direction.double())
    assert of_inputs.dtype == of_bias.dtype == dtype
    torch.testing.assert_close(of_inputs.double(), of_exact, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(of_bias.double(), of_exact.sum(0), atol=1.0, rtol=2e-2)
