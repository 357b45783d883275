"""The loss of kept logits against its formula, and against that of all logits."""

import pytest
import torch
from torch import Tensor

from distill.answers import Answer, TopLogits, from_bytes, keep_top, to_bytes, top_loss
from distill.losses import kd_ce_loss, kd_ce_t2_loss, kd_kl_loss, kd_kl_t2_loss

ROWS, CLASSES, TEMPERATURE = 7, 50, 4.0
WHOLE = {
    (False, False): kd_ce_loss,
    (False, True): kd_kl_loss,
    (True, False): kd_ce_t2_loss,
    (True, True): kd_kl_t2_loss,
}
KINDS = pytest.mark.parametrize(("squared", "less_entropy"), WHOLE)


def draw(seed: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed))


def loss_and_gradient(student: Tensor, loss: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(loss, student)
    return float(loss.detach()), gradient


@KINDS
def test_all_but_one_class_are_all_classes(squared: bool, less_entropy: bool) -> None:
    student, teacher = draw(0).requires_grad_(), draw(1)
    top = keep_top(teacher, CLASSES - 1, TEMPERATURE)
    kind = {"squared": squared, "less_entropy": less_entropy}
    found = loss_and_gradient(student, top_loss(student, top, TEMPERATURE, **kind))
    whole = WHOLE[squared, less_entropy](student, teacher, TEMPERATURE)
    wanted = loss_and_gradient(student, whole)
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-7)


@KINDS
@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_rest_is_one_class(k: int, squared: bool, less_entropy: bool) -> None:
    student, teacher = draw(0).requires_grad_(), draw(1)
    top = keep_top(teacher, k, TEMPERATURE)
    exact = student.detach().double().requires_grad_()
    p, q = ((x.double() / TEMPERATURE).softmax(-1) for x in (exact, teacher))
    p, q = (
        torch.cat([kept := x.gather(-1, top.indices), 1 - kept.sum(-1, keepdim=True)], dim=-1)
        for x in (p, q)
    )
    rows = (q * (q / p).log() if less_entropy else -q * p.log()).sum(-1)
    wanted = loss_and_gradient(exact, rows.mean() * (TEMPERATURE**2 if squared else 1))
    kind = {"squared": squared, "less_entropy": less_entropy}
    found = loss_and_gradient(student, top_loss(student, top, TEMPERATURE, **kind))
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    torch.testing.assert_close(found[1].double(), wanted[1], rtol=1e-4, atol=1e-8)


def test_it_is_zero_where_both_agree_and_below_the_whole_loss() -> None:
    logits = draw(0)
    top = keep_top(logits, 4, TEMPERATURE)
    kind = {"squared": False, "less_entropy": True}
    assert float(top_loss(logits, top, TEMPERATURE, **kind)) == pytest.approx(0, abs=1e-6)
    student = draw(1)
    part = float(top_loss(student, top, TEMPERATURE, **kind))
    assert 0 < part < float(kd_kl_loss(student, logits, TEMPERATURE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sure_student_in_half_precision_has_a_finite_gradient(dtype: torch.dtype) -> None:
    student = (60 * torch.eye(ROWS, CLASSES)).to(dtype).requires_grad_()
    top = keep_top(draw(1, spread=30.0), 3, 1.0)
    loss = top_loss(student, top, 1.0, squared=False, less_entropy=False)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.dtype == dtype
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_what_is_kept_are_the_largest_and_the_mass_of_the_others() -> None:
    teacher = draw(1)
    top = keep_top(teacher, 6, TEMPERATURE)
    torch.testing.assert_close(top.values, teacher.sort(-1, descending=True).values[:, :6])
    mass = torch.cat([top.values / TEMPERATURE, top.rest.unsqueeze(-1)], -1).logsumexp(-1)
    torch.testing.assert_close(mass, (teacher / TEMPERATURE).logsumexp(-1))


def test_an_answer_moves_whole() -> None:
    answer = Answer(
        {"mlm": keep_top(draw(1), 3, 1.0), "pos": draw(2)}, {("hidden", 1): torch.ones(2, 3, 4)}
    )
    moved = answer.to(torch.device("meta"))
    assert isinstance(moved.logits["mlm"], TopLogits)
    tensors = [*moved.logits["mlm"], moved.logits["pos"], moved.sources["hidden", 1]]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)} == {"meta"}


def test_bytes_err_by_half_a_step_of_their_row() -> None:
    logits = draw(1) * torch.logspace(-3, 3, ROWS).unsqueeze(-1)
    codes, scales = to_bytes(logits)
    assert codes.dtype == torch.uint8
    assert codes.amin(-1).eq(0).all()
    assert codes.amax(-1).eq(255).all()
    step = (logits.amax(-1) - logits.amin(-1)) / 255
    assert ((from_bytes(codes, scales) - logits).abs() <= 0.501 * step.unsqueeze(-1)).all()
    flat = torch.full((2, 5), 7.0)
    assert from_bytes(*to_bytes(flat)).equal(flat)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_bytes_give_nearly_the_gradient_of_the_logits(temperature: float) -> None:
    student, teacher = draw(0).requires_grad_(), draw(1)
    rounded = from_bytes(*to_bytes(teacher))
    _, wanted = loss_and_gradient(student, kd_kl_loss(student, teacher, temperature))
    _, found = loss_and_gradient(student, kd_kl_loss(student, rounded, temperature))
    assert (found - wanted).norm() < 0.02 * wanted.norm()
