"""Our losses against their formulas, written out in float64; what they leave in memory."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from textbrewer.losses import kd_ce_loss, kd_mse_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill import losses
from distill.losses import (
    KD_LOSSES,
    kd_ce_t2_loss,
    kd_kl_loss,
    kd_mse_t2_loss,
    minilm_relation,
)

ROWS, CLASSES = 7, 23
ROW_TEMPERATURES = torch.tensor([1.0, 2.0, 0.5, 8.0, 3.0, 1.5, 4.0], dtype=torch.float64)
TEMPERATURES = pytest.mark.parametrize(
    "temperature", [1, 8.0, torch.tensor(2.5), ROW_TEMPERATURES], ids=["1", "8", "scalar", "rows"]
)


@pytest.fixture(params=["whole", "pieces"], autouse=True)
def piece_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in one go, once in pieces of two rows or of one instance."""
    if request.param == "pieces":
        monkeypatch.setattr(losses, "ELEMENTS_AT_ONCE", {"cpu": 2 * CLASSES + 1})


def make_logits(
    rows: int = ROWS, classes: int = CLASSES, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def written_out(name: str, student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    column = torch.as_tensor(temperature, dtype=torch.float64).reshape(-1, 1)
    squared = column.squeeze(-1) ** 2
    if name == "mse_t2":
        errors = ((student / column - teacher / column) ** 2).mean(-1)
        return (squared * errors).mean()
    p = torch.softmax(student / column, -1)
    q = torch.softmax(teacher / column, -1)
    terms = {"kl": q * (q / p).log(), "ce": -q * p.log()}[
        name.removesuffix("_t2").removeprefix("lean_")
    ]
    rows = terms.sum(-1)
    return (squared * rows if name.endswith("_t2") else rows).mean()


def gradient_of(loss: Callable[..., Tensor], student: Tensor, *args: Any) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(student, *args), student)
    return gradient


@TEMPERATURES
@pytest.mark.parametrize("name", KD_LOSSES)
def test_kd_losses_are_their_formulas(name: str, temperature: float | Tensor) -> None:
    student, teacher = make_logits()
    loss = KD_LOSSES[name](student, teacher, temperature)
    expected = written_out(name, student, teacher, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
    # Another factor behind the loss, as accumulation and weights bring it.
    torch.testing.assert_close(
        torch.autograd.grad(-3 * loss, student)[0],
        torch.autograd.grad(-3 * expected, student)[0],
        rtol=1e-11,
        atol=1e-13,
    )


@TEMPERATURES
@pytest.mark.parametrize("name", KD_LOSSES)
def test_kd_gradients_are_the_slopes(name: str, temperature: float | Tensor) -> None:
    student, teacher = make_logits()
    assert torch.autograd.gradcheck(
        lambda logits: KD_LOSSES[name](logits, teacher, temperature), (student,), fast_mode=True
    )


@TEMPERATURES
def test_kl_is_textbrewers_ce_without_the_entropy(temperature: float | Tensor) -> None:
    student, teacher = make_logits()
    column = torch.as_tensor(temperature, dtype=torch.float64).reshape(-1, 1)
    q = torch.softmax(teacher / column, -1)
    entropy = -(q * q.log()).sum(-1).mean()
    cross_entropy = kd_ce_loss(student, teacher, temperature)
    torch.testing.assert_close(kd_kl_loss(student, teacher, temperature), cross_entropy - entropy)
    torch.testing.assert_close(
        gradient_of(kd_kl_loss, student, teacher, temperature),
        gradient_of(kd_ce_loss, student, teacher, temperature),
    )


@pytest.mark.parametrize(
    ("ours", "textbrewers"), [(kd_ce_t2_loss, kd_ce_loss), (kd_mse_t2_loss, kd_mse_loss)]
)
def test_one_temperature_is_a_factor_on_textbrewers_loss(
    ours: Callable[..., Tensor], textbrewers: Callable[..., Tensor]
) -> None:
    student, teacher = make_logits()
    torch.testing.assert_close(ours(student, teacher, 4.0), 16 * textbrewers(student, teacher, 4.0))


def test_rows_of_several_dimensions_are_rows() -> None:
    student, teacher = make_logits(rows=6)
    temperature = ROW_TEMPERATURES[:6]
    folded = (student.view(2, 3, -1), teacher.view(2, 3, -1), temperature.view(2, 3))
    for name, loss in KD_LOSSES.items():
        assert loss(*folded) == loss(student, teacher, temperature), name


@pytest.mark.parametrize("name", ["kl", "kl_t2", "mse_t2"])
def test_agreement_costs_nothing(name: str) -> None:
    student, _ = make_logits(dtype=torch.float32)
    loss = KD_LOSSES[name](student, student.detach(), 8.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", KD_LOSSES)
def test_no_rows_give_exactly_nothing(name: str) -> None:
    features = torch.randn(0, 5)
    decoder = torch.nn.Linear(5, CLASSES)
    loss = KD_LOSSES[name](decoder(features), torch.randn(0, CLASSES), 2.0)
    loss.backward()
    assert loss == 0
    assert decoder.weight.grad is not None
    assert not decoder.weight.grad.any()


@pytest.mark.parametrize("name", KD_LOSSES)
def test_the_teacher_gets_no_gradient(name: str) -> None:
    student, teacher = make_logits()
    teacher.requires_grad_()
    KD_LOSSES[name](student, teacher, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("name", KD_LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = make_logits(classes=3000, dtype=dtype)
    exact_student = student.detach().double().requires_grad_()
    expected = written_out(name, exact_student, teacher.double(), 4.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = KD_LOSSES[name](student, teacher, 4.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss * 2**16, student)
    (exact,) = torch.autograd.grad(expected * 2**16, exact_student)
    assert gradient.dtype == dtype
    # float16 could not keep the smallest before the factor of 2**16: they would be off by 1e-3.
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), exact, rtol=epsilon, atol=5e-5)


def saved_bytes(compute: Callable[[], Tensor]) -> int:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(tensor.numel() * tensor.element_size() for tensor in saved)


class LargestResults(TorchDispatchMode):
    """Counts the results of operations that are at least so large, each storage once."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.storages: dict[int, Tensor] = {}  # kept alive, so that no address comes twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().nbytes() >= 4 * self.elements:
            self.storages[result.untyped_storage().data_ptr()] = result
        return result


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["kl", "lean_ce", "kl_t2", "ce_t2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_leave_one_gradient(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ELEMENTS_AT_ONCE", {"cpu": 10 * 1000})
    student, teacher = make_logits(rows=100, classes=1000, dtype=dtype)
    logits_bytes = student.numel() * student.element_size()
    saved = saved_bytes(lambda: KD_LOSSES[name](student, teacher, 4.0))
    assert logits_bytes <= saved < 1.01 * logits_bytes
    with torch.no_grad():
        assert saved_bytes(lambda: KD_LOSSES[name](student, teacher, 4.0)) == 0


@pytest.mark.parametrize("name", ["kl", "lean_ce", "kl_t2", "ce_t2"])
def test_nothing_else_of_their_size_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "ELEMENTS_AT_ONCE", {"cpu": 10 * 1000})
    student, teacher = make_logits(rows=100, classes=1000, dtype=torch.float32)
    logits = {tensor.untyped_storage().data_ptr() for tensor in (student, teacher)}
    with LargestResults(student.numel()) as results:
        KD_LOSSES[name](student, teacher, 4.0)
    assert len(results.storages.keys() - logits) == 1  # the gradient
    with torch.no_grad(), LargestResults(student.numel()) as results:
        KD_LOSSES[name](student.detach(), teacher, 4.0)
    assert not results.storages.keys() - logits


# Relations of queries, keys and values.

BATCH, HEADS, LENGTH = 3, 4, 6
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]])
MASKS = pytest.mark.parametrize("mask", [None, MASK, MASK.bool()], ids=["none", "int", "bool"])


def make_relations(
    dtype: torch.dtype = torch.float64, sizes: tuple[int, int] = (2, 5)
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)

    def three(size: int) -> tuple[Tensor, Tensor, Tensor]:
        # As taps give it: heads are a view of [batch, length, heads * size].
        q, k, v = (
            torch.randn(BATCH, LENGTH, HEADS, size, generator=generator, dtype=torch.float64)
            .to(dtype)
            .transpose(1, 2)
            for _ in range(3)
        )
        return q, k, v

    student = three(sizes[0])
    for tensor in student:
        tensor.requires_grad_()
    return student, three(sizes[1])


def written_out_relation(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor | None
) -> Tensor:
    """One query of one head at a time, over its real keys only."""
    total = torch.zeros((), dtype=torch.float64)
    for x_s, x_t in zip(student, teacher, strict=True):
        values = []
        for b in range(BATCH):
            real = LENGTH if mask is None else int(mask[b].sum())
            for h in range(HEADS):
                for i in range(real):
                    p, q = (
                        torch.softmax(x[b, h, :real] @ x[b, h, i] / math.sqrt(x.shape[-1]), -1)
                        for x in (x_s.double(), x_t.double())
                    )
                    values.append((q * (q / p).log()).sum())
        total = total + torch.stack(values).mean()
    return total


@MASKS
def test_relations_are_their_formula(mask: Tensor | None) -> None:
    student, teacher = make_relations()
    loss = minilm_relation(student, teacher, mask=mask)
    expected = written_out_relation(student, teacher, mask)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(5 * loss, student)
    for ours, theirs in zip(gradients, torch.autograd.grad(5 * expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@MASKS
def test_gradients_of_relations_are_the_slopes(mask: Tensor | None) -> None:
    student, teacher = make_relations()
    assert torch.autograd.gradcheck(
        lambda *qkv: minilm_relation(qkv, teacher, mask), student, fast_mode=True
    )


def test_what_stands_at_padding_does_not_matter() -> None:
    student, teacher = make_relations()
    padding = ~MASK.bool()[:, None, :, None]
    other_student, other_teacher = (
        tuple(torch.where(padding, 50.0, x).detach().requires_grad_() for x in three)
        for three in (student, teacher)
    )
    loss = minilm_relation(student, teacher, MASK)
    other = minilm_relation(other_student, other_teacher, MASK)  # type: ignore[arg-type]
    torch.testing.assert_close(other, loss)
    gradients = torch.autograd.grad(loss, student)
    for ours, others in zip(gradients, torch.autograd.grad(other, other_student), strict=True):
        torch.testing.assert_close(ours, others)
        assert not ours.masked_select(padding).any()


def test_equal_relations_cost_nothing() -> None:
    student, _ = make_relations(torch.float32)
    loss = minilm_relation(student, tuple(x.detach() for x in student), MASK)  # type: ignore[arg-type]
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, student))


def test_an_instance_without_a_real_token_adds_nothing() -> None:
    student, teacher = make_relations()
    mask = MASK.clone()
    mask[1] = 0
    loss = minilm_relation(student, teacher, mask)
    expected = written_out_relation(student, teacher, mask)
    torch.testing.assert_close(loss, expected)
    assert not any(gradient[1].any() for gradient in torch.autograd.grad(loss, student))
    nothing = minilm_relation(student, teacher, torch.zeros_like(mask))
    assert nothing == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(nothing, student))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relations_under_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = make_relations(dtype)
    exact_student = tuple(tensor.detach().double().requires_grad_() for tensor in student)
    expected = written_out_relation(exact_student, teacher, MASK)
    exact = torch.autograd.grad(expected, exact_student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = minilm_relation(student, teacher, MASK)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    for ours, theirs in zip(torch.autograd.grad(loss, student), exact, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=1e-7)


def test_the_teachers_relations_get_no_gradient() -> None:
    student, teacher = make_relations()
    for tensor in teacher:
        tensor.requires_grad_()
    minilm_relation(student, teacher, MASK).backward()
    assert all(tensor.grad is not None for tensor in student)
    assert all(tensor.grad is None for tensor in teacher)


def test_no_relation_outlives_the_forward_pass() -> None:
    student, teacher = make_relations(torch.float32)
    saved = saved_bytes(lambda: minilm_relation(student, teacher, MASK))
    assert saved == sum(4 * tensor.numel() for tensor in student)


def test_an_evaluation_of_relations_makes_no_gradient() -> None:
    student, teacher = make_relations(torch.float32)
    products = {}
    for name, tensors in {
        "training": student,
        "evaluation": tuple(x.detach() for x in student),
    }.items():
        with Products() as counted:
            minilm_relation(tensors, teacher, MASK)  # type: ignore[arg-type]
        products[name] = counted.count
    assert (
        products["evaluation"] * 3 == products["training"] * 2
    )  # student's, teacher's; gradient's
