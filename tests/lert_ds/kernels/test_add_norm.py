"""Dropout, sum and LayerNorm, and bias and GELU, against PyTorch in float64, masks included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lert_ds.kernels.add_norm import add_norm, bias_gelu, plain_add_norm, plain_bias_gelu
from lert_ds.kernels.seed import draw_seed

Keep = Callable[[int, int, int, float], Tensor]
EPSILON = 1e-12
"""That of BERT."""


def norm_of(hidden: int, dtype: torch.dtype = torch.float32) -> nn.LayerNorm:
    generator = torch.Generator().manual_seed(1)
    norm = nn.LayerNorm(hidden, eps=EPSILON)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(hidden, generator=generator))
        norm.bias.copy_(torch.randn(hidden, generator=generator))
    return norm.to(dtype)


def inputs_of(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [tensor.to(dtype) for tensor in torch.randn(2, *shape, generator=generator)]


def both(
    native: Any, keep: Keep, tensors: list[Tensor], norm: nn.LayerNorm, dropout: float
) -> list[tuple[str, Tensor, Tensor]]:
    """Return by name what the kernel and what the reference give, gradients after the output."""
    torch.manual_seed(3)
    seed = draw_seed()
    torch.manual_seed(3)
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    found = add_norm(native, ours[0], ours[1], norm, dropout)
    direction = torch.randn(found.shape)
    of_ours = torch.autograd.grad(found, [*ours, norm.weight, norm.bias], direction.to(found.dtype))

    exact = [tensor.double().requires_grad_() for tensor in (*tensors, norm.weight, norm.bias)]
    hidden = tensors[0].shape[-1]
    kept: Tensor | float = 1.0
    if dropout:
        rows = tensors[0].numel() // hidden
        kept = keep(seed, rows, hidden, dropout).view(tensors[0].shape)
    expected = functional.layer_norm(
        exact[0] * kept + exact[1], (hidden,), exact[2], exact[3], EPSILON
    )
    direction = direction.to(found.dtype).double()
    of_exact = torch.autograd.grad(expected, exact, direction)
    names = ("output", "of inputs", "of residual", "of weight", "of bias")
    return list(zip(names, (found, *of_ours), (expected, *of_exact), strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(
    "shape", [(1, 2), (3, 7), (2, 1, 33), (5, 129), (2, 17, 256), (40, 768)], ids=str
)
def test_it_is_dropout_sum_and_layer_norm(
    native: Any, keep: Keep, shape: tuple[int, ...], dropout: float
) -> None:
    results = both(native, keep, inputs_of(*shape), norm_of(shape[-1]), dropout)
    for name, ours, theirs in results:
        scale = float(theirs.detach().abs().max().clamp_min(1.0))
        # Of two numbers that lie close together only so many digits of the deviation are there.
        tolerance = (1e-4 if shape[-1] < 8 else 4e-6) * scale
        torch.testing.assert_close(
            ours.double(), theirs, atol=tolerance, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 40),
    hidden=st.integers(8, 70),
    dropout=st.sampled_from([0.0, 0.25]),
    seed=st.integers(0, 100),
)
def test_any_shape(
    native: Any, keep: Keep, rows: int, hidden: int, dropout: float, seed: int
) -> None:
    tensors = inputs_of(rows, hidden, seed=seed)
    for name, ours, theirs in both(native, keep, tensors, norm_of(hidden), dropout):
        assert ours.shape == theirs.shape
        scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
        torch.testing.assert_close(
            ours.double(), theirs, atol=2e-5 * scale, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(native: Any, keep: Keep, dtype: torch.dtype) -> None:
    tensors, norm = inputs_of(30, 96, dtype=dtype), norm_of(96, dtype)
    for name, ours, theirs in both(native, keep, tensors, norm, 0.1):
        assert ours.dtype == dtype
        unit = torch.finfo(dtype).eps * float(theirs.detach().abs().max().clamp_min(1.0))
        torch.testing.assert_close(
            ours.double(), theirs, atol=unit, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_result_is_of_the_residuals_type(native: Any) -> None:
    # As under autocast: a matrix product in bf16 beside a residual in float32.
    inputs, residual = inputs_of(6, 32)
    norm = norm_of(32)
    found = add_norm(native, inputs.bfloat16(), residual, norm, 0.0)
    assert found.dtype == torch.float32
    expected = functional.layer_norm(
        inputs.bfloat16() + residual, (32,), norm.weight, norm.bias, EPSILON
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_does_not_lie_together_is_read_right(native: Any) -> None:
    # One bias for all rows, as what is left of a layer whose inputs are all pruned.
    bias, residual = torch.randn(16), torch.randn(16, 6).t()
    norm = norm_of(16)
    found = add_norm(native, bias.expand(6, 16), residual, norm, 0.0)
    expected = norm(bias + residual)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_several_threads_give_what_one_gives(
    native: Any, keep: Keep, threads: Callable[[int], Any], dropout: float
) -> None:
    results = []
    for number in (1, 3):
        with threads(number):
            results.append(both(native, keep, inputs_of(101, 64), norm_of(64), dropout))
    for (name, one, _), (_, several, _) in zip(*results, strict=True):
        if name in ("of weight", "of bias"):  # sums over rows, of which each thread has a part
            torch.testing.assert_close(one, several, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(one, several), name


def dropped_of(native: Any, rows: int, hidden: int, dropout: float) -> Tensor:
    ones, zeros = torch.ones(rows, hidden), torch.zeros(rows, hidden)
    some = torch.ones(hidden)
    summed = native.add_norm_forward(ones, zeros, some, some, dropout, EPSILON, draw_seed())[1]
    return (summed == 0).double()


@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.5])
def test_as_many_are_dropped_as_asked(native: Any, dropout: float) -> None:
    torch.manual_seed(0)
    dropped = dropped_of(native, 2000, 512, dropout)
    deviation = (dropout * (1 - dropout) / dropped.numel()) ** 0.5
    assert dropped.mean().item() == pytest.approx(dropout, abs=5 * deviation)
    for dimension in (0, 1):
        count = dropped.shape[dimension]
        spread = (dropout * (1 - dropout) / count) ** 0.5
        assert dropped.mean(dimension).std().item() == pytest.approx(spread, rel=0.15)


def test_neighbours_are_independent(native: Any) -> None:
    torch.manual_seed(0)
    dropped = dropped_of(native, 2000, 512, 0.5) - 0.5
    for dimension in (0, 1):
        for distance in (1, 2, 3, 4, 16, 256):
            correlation = 4 * (dropped * dropped.roll(distance, dimension)).mean().item()
            assert abs(correlation) < 5 / dropped.numel() ** 0.5, (dimension, distance)


def test_a_seed_repeats_its_mask_and_the_next_draw_differs(native: Any) -> None:
    torch.manual_seed(7)
    first, second = (dropped_of(native, 100, 100, 0.5) for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(dropped_of(native, 100, 100, 0.5), first)
    assert (first == second).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_checkpointing_draws_the_same_mask_again(native: Any) -> None:
    norm, gradients = norm_of(32), []
    for again in (False, True):
        torch.manual_seed(2)
        inputs, residual = (tensor.requires_grad_() for tensor in inputs_of(9, 32))

        def forward(one: Tensor, other: Tensor) -> Tensor:
            return add_norm(native, one, other, norm, 0.4).square()

        if again:
            output = checkpoint(forward, inputs, residual, use_reentrant=False)
        else:
            output = forward(inputs, residual)
        torch.manual_seed(99)
        gradients.append(torch.autograd.grad(output.sum(), [inputs, residual]))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_without_dropout_no_number_is_drawn(native: Any) -> None:
    before = torch.get_rng_state()
    add_norm(native, *inputs_of(3, 8), norm_of(8), 0.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen(native: Any, wrong: float) -> None:
    inputs, residual = inputs_of(4, 33)
    inputs[2, 5] = wrong
    found = add_norm(native, inputs, residual, norm_of(33), 0.0)
    assert found.isnan().all(-1).tolist() == [False, False, True, False]
    active = bias_gelu(native, inputs, torch.zeros(33))
    assert not active[2, 5].isfinite()
    assert active.isfinite().sum() == active.numel() - 1


def test_the_kernels_refuse_what_they_would_read_wrongly(native: Any) -> None:
    inputs, residual = inputs_of(4, 8)
    some, short = torch.ones(8), torch.ones(7)
    for tensors in (
        (inputs, residual[:3], some, some),
        (inputs, residual, short, some),
        (inputs, residual, some, short),
        (inputs.t(), residual.t(), torch.ones(4), torch.ones(4)),
        (inputs, residual.double(), some, some),
    ):
        with pytest.raises(RuntimeError):
            native.add_norm_forward(*tensors, 0.0, EPSILON, 0)
    with pytest.raises(RuntimeError):
        native.bias_gelu_forward(inputs, short)


def gelu_both(native: Any, inputs: Tensor, bias: Tensor) -> list[tuple[Tensor, Tensor]]:
    ours = [inputs.clone().requires_grad_(), bias.clone().requires_grad_()]
    found = bias_gelu(native, *ours)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(8)).to(found.dtype)
    of_ours = torch.autograd.grad(found, ours, direction)
    exact = [inputs.double().requires_grad_(), bias.double().requires_grad_()]
    expected = functional.gelu(exact[0] + exact[1])
    of_exact = torch.autograd.grad(expected, exact, direction.double())
    return list(zip((found, *of_ours), (expected, *of_exact), strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 129), (33, 513), (0, 8)], ids=str)
def test_bias_gelu_is_gelu_of_the_sum(native: Any, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.randn(shape, generator=generator)
    bias = torch.randn(shape[-1], generator=generator)
    for ours, theirs in gelu_both(native, inputs, bias):
        torch.testing.assert_close(ours.double(), theirs, atol=3e-6, rtol=1e-5)


def test_gelu_is_exact_to_seven_digits_everywhere(native: Any) -> None:
    places = torch.linspace(-12, 12, 200_001)[None]
    for ours, theirs in gelu_both(native, places, torch.zeros(200_001)):
        assert (ours.double() - theirs).abs().max().item() < 2e-6
    far = torch.tensor([[-1e30, -200.0, -40.0, 40.0, 200.0, 1e30]])
    torch.testing.assert_close(bias_gelu(native, far, torch.zeros(6)), far.clamp_min(0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gelu_in_half_precision(native: Any, dtype: torch.dtype) -> None:
    inputs, bias = torch.randn(20, 40).to(dtype), torch.randn(40).to(dtype)
    for ours, theirs in gelu_both(native, inputs, bias):
        assert ours.dtype == dtype
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(ours.double(), theirs, atol=unit, rtol=unit)


def test_gelu_of_several_threads_is_that_of_one(native: Any, threads: Callable[[int], Any]) -> None:
    inputs, bias = torch.randn(101, 40), torch.randn(40)
    results = []
    for number in (1, 3):
        with threads(number):
            results.append([ours for ours, _ in gelu_both(native, inputs, bias)])
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(one, several, atol=1e-5, rtol=1e-5)
    assert torch.equal(results[0][0], results[1][0])


def test_the_plain_versions_are_the_same(native: Any) -> None:
    inputs, residual = inputs_of(9, 24)
    norm = norm_of(24)
    plain = plain_add_norm(inputs, residual, norm.weight, norm.bias, norm.eps, 0.0)
    torch.testing.assert_close(add_norm(native, inputs, residual, norm, 0.0), plain)
    torch.testing.assert_close(
        bias_gelu(native, inputs, norm.bias), plain_bias_gelu(inputs, norm.bias)
    )
    torch.manual_seed(0)
    ones = torch.ones(200, 24)
    spread = plain_add_norm(ones, 0 * ones, norm.weight, norm.bias, norm.eps, 0.5)
    assert not torch.equal(spread[0], spread[1])  # it drops
