"""The decoder and its cross entropy together, against PyTorch's two steps in float64."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lert_ds.kernels import linear_cross_entropy as module
from lert_ds.kernels.linear_cross_entropy import linear_cross_entropy


def inputs_of(
    rows: int, size: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """Return [hidden, weight, bias] and labels."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((rows, size), (classes, size), (classes,))
    ]
    return tensors, torch.randint(0, classes, (rows,), generator=generator)


def two_steps(tensors: list[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return float64 copies of the inputs, the sum of cross entropies and the hits."""
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    logits = functional.linear(*exact)
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return exact, loss, (logits.argmax(-1) == labels).sum()


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(0, 40),
    size=st.integers(1, 20),
    classes=st.integers(1, 50),
    piece=st.integers(1, 50),
    factor=st.sampled_from([1.0, 0.25, -3.0]),
    seed=st.integers(0, 1000),
)
def test_it_is_cross_entropy_of_the_logits(
    rows: int, size: int, classes: int, piece: int, factor: float, seed: int
) -> None:
    tensors, labels = inputs_of(rows, size, classes, seed)
    with mock.patch.object(module, "PIECE_BYTES", piece * 4 * classes):
        found = linear_cross_entropy(*tensors, labels)
    exact, loss, hits = two_steps(tensors, labels)
    torch.testing.assert_close(found.loss.double(), loss, atol=1e-5, rtol=1e-5)
    assert found.hits.item() == hits.item()
    gradients = torch.autograd.grad(factor * found.loss, tensors)
    expected = torch.autograd.grad(factor * loss, exact)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("given_in", ["autocast", "parameters"])
def test_in_bf16_it_is_as_near_as_the_two_steps_are(given_in: str) -> None:
    dtype = torch.float32 if given_in == "autocast" else torch.bfloat16
    tensors, labels = inputs_of(200, 64, 500, dtype=dtype)
    exact, loss, _ = two_steps(tensors, labels)
    expected = torch.autograd.grad(loss, exact)

    def errors(total: Tensor) -> list[float]:
        gradients = torch.autograd.grad(total, tensors)
        assert [gradient.dtype for gradient in gradients] == [dtype] * 3
        return [
            float((ours.double() - theirs).norm() / theirs.norm())
            for ours, theirs in zip(gradients, expected, strict=True)
        ]

    with torch.autocast("cpu", torch.bfloat16, enabled=given_in == "autocast"):
        fused = linear_cross_entropy(*tensors, labels).loss
        logits = functional.linear(*tensors)
        plain = functional.cross_entropy(logits.float(), labels, reduction="sum")
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused.double(), loss, rtol=2e-3, atol=0)
    for ours, theirs in zip(errors(fused), errors(plain), strict=True):
        assert ours < 1.2 * theirs + 1e-3


def test_many_pieces_in_bf16_do_not_lose_small_gradients() -> None:
    # 4,000 equal rows: a sum in bf16 would stop to grow at 256 times one of them.
    tensors, _ = inputs_of(1, 8, 20, dtype=torch.bfloat16)
    hidden = tensors[0].detach().expand(4000, 8)
    labels = torch.zeros(4000, dtype=torch.int64)
    with mock.patch.object(module, "PIECE_BYTES", 4 * 20):  # one row a piece
        loss = linear_cross_entropy(hidden, tensors[1], tensors[2], labels).loss
    found = torch.autograd.grad(loss, tensors[2])[0]
    exact, exact_loss, _ = two_steps([hidden, *tensors[1:]], labels)
    expected = torch.autograd.grad(exact_loss, exact[2])[0]
    torch.testing.assert_close(found.double(), expected, rtol=5e-2, atol=1.0)


def test_no_logits_are_kept() -> None:
    tensors, labels = inputs_of(64, 8, 300)
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        linear_cross_entropy(*tensors, labels)
    assert sorted(kept) == [(64, 8), (300,), (300, 8)]


def test_an_evaluation_computes_no_gradient() -> None:
    tensors, labels = inputs_of(64, 8, 300)
    product = 2 * 64 * 8 * 300
    with FlopCounterMode(display=False) as training:
        linear_cross_entropy(*tensors, labels)
    with FlopCounterMode(display=False) as evaluating, torch.no_grad():
        found = linear_cross_entropy(*tensors, labels)
    assert training.get_total_flops() > product
    assert evaluating.get_total_flops() == product
    torch.testing.assert_close(found.loss.double(), two_steps(tensors, labels)[1])
    frozen = [tensor.detach() for tensor in tensors]
    assert not linear_cross_entropy(*frozen, labels).loss.requires_grad


def test_one_that_is_frozen_gets_no_gradient() -> None:
    (hidden, weight, bias), labels = inputs_of(30, 8, 40)
    weight = weight.detach()
    linear_cross_entropy(hidden, weight, bias, labels).loss.backward()
    assert weight.grad is None
    exact, loss, _ = two_steps([hidden, weight, bias], labels)
    loss.backward()
    torch.testing.assert_close(hidden.grad.double(), exact[0].grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bias.grad.double(), exact[2].grad, atol=1e-5, rtol=1e-5)


def test_a_second_backward_pass_is_refused_and_not_wrong() -> None:
    # The first one scales the gradients where they lie.
    tensors, labels = inputs_of(5, 4, 6)
    loss = linear_cross_entropy(*tensors, labels).loss * 2
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()


def test_large_logits_do_not_overflow() -> None:
    tensors, labels = inputs_of(9, 4, 6)
    large = [(1e4 * tensor.detach()).requires_grad_() for tensor in tensors]
    found = linear_cross_entropy(*large, labels).loss
    assert found.isfinite()
    torch.testing.assert_close(found.double(), two_steps(large, labels)[1], rtol=1e-5, atol=0)
    spoilt = [tensor.detach().clone() for tensor in tensors]
    spoilt[0][3, 2] = torch.nan
    assert linear_cross_entropy(*spoilt, labels).loss.isnan()
