"""Losses that TextBrewer 0.2.1 lacks, in its calling convention: (student, teacher) to a scalar.

    kl       mean over rows of KL(teacher ‖ student), both softened by the temperature T
    kl_t2    the same times T², which keeps the size of gradients (Hinton et al. 2015, 1503.02531)
    lean_ce  TextBrewer's ce: the mean over rows of the cross entropy
    ce_t2    mean of T² · cross entropy: KL plus the teacher's entropy, the gradient of kl_t2
    mse_t2   mean of T² · ((student - teacher) / T)²
    minilm_relation   KL between relations of queries, keys and values (MiniLMv2, 2012.15828)

The teacher never gets a gradient. Logits [rows, 21128] and relations [batch, heads, length, length]
are the largest tensors of a step. So both divergences go through them in pieces, make the gradient
on the way forward and keep it alone: one tensor of the size of the student's logits, or of its
queries, keys or values. On a CPU that is half the memory and less than half the time of the plain
formula for logits [2400, 21128], and a fifth and a third of it for relations of 256 tokens.
Computation is in float32, in float64 where the input is, under autocast too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Relations = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each [batch, relation heads, length, size]."""

ELEMENTS_AT_ONCE = {"cpu": 2**20, "cuda": 2**24}
"""Size of the pieces: on a CPU what its cache holds (twice as fast as the whole at once); on a GPU
more, because a piece is ten kernels to launch."""


def kd_kl_loss(logits_S: Tensor, logits_T: Tensor, temperature: float | Tensor = 1) -> Tensor:
    """Return the mean over rows of KL(softmax(teacher / T) ‖ softmax(student / T)), in nats.

    It has the gradient of TextBrewer's `ce`, less its floor: it is 0 where both agree. No rows
    give 0, and a gradient without elements.

    Args:
        logits_S: [..., classes] of the student.
        logits_T: The same of the teacher.
        temperature: T, above 0: one number, or one a row, [...].
    """
    return _distill(logits_S, logits_T, temperature, squared=False, less_entropy=True)


def kd_ce_loss(logits_S: Tensor, logits_T: Tensor, temperature: float | Tensor = 1) -> Tensor:
    """Return TextBrewer's `ce`, in less memory; arguments as of `kd_kl_loss`."""
    return _distill(logits_S, logits_T, temperature, squared=False, less_entropy=False)


def kd_kl_t2_loss(logits_S: Tensor, logits_T: Tensor, temperature: float | Tensor = 1) -> Tensor:
    """Return the mean over rows of T² times the divergence of `kd_kl_loss`; arguments as there."""
    return _distill(logits_S, logits_T, temperature, squared=True, less_entropy=True)


def kd_ce_t2_loss(logits_S: Tensor, logits_T: Tensor, temperature: float | Tensor = 1) -> Tensor:
    """Return the mean over rows of T² times the cross entropy; arguments as of `kd_kl_loss`."""
    return _distill(logits_S, logits_T, temperature, squared=True, less_entropy=False)


def kd_mse_t2_loss(logits_S: Tensor, logits_T: Tensor, temperature: float | Tensor = 1) -> Tensor:
    """Return the mean over rows and classes of T² · ((student - teacher) / T)².

    T cancels out, so the temperature is not read. Arguments as of `kd_kl_loss`.
    """
    student, teacher = logits_S.to(_exact(logits_S)), logits_T.detach().to(_exact(logits_S))
    total = functional.mse_loss(student, teacher, reduction="sum")
    return total / max(student.numel(), 1)


KD_LOSSES: dict[str, Callable[[Tensor, Tensor, float | Tensor], Tensor]] = {
    "kl": kd_kl_loss,
    "lean_ce": kd_ce_loss,
    "kl_t2": kd_kl_t2_loss,
    "ce_t2": kd_ce_t2_loss,
    "mse_t2": kd_mse_t2_loss,
}
"""Name to loss, to put beside `ce` and `mse` in TextBrewer's `KD_LOSS_MAP`."""


def minilm_relation(
    relations_S: Relations, relations_T: Relations, mask: Tensor | None = None
) -> Tensor:
    """Return the divergence of the student's relations from the teacher's, in nats.

    A relation of x (queries, keys or values) is softmax(x xᵀ / √size) of each head: where a token
    looks among tokens of its own kind. The loss is KL(teacher ‖ student), padded keys left out,
    mean over the real query positions and heads, summed over the three (Wang et al. 2020, MiniLMv2,
    arXiv 2012.15828). Sizes may differ between the two; heads and length are equal.

    Args:
        relations_S: Queries, keys and values of the student.
        relations_T: The same of the teacher.
        mask: [batch, length], true or 1 at real tokens; None where nothing is padded.
    """
    mask = None if mask is None else mask.bool()
    losses = [
        _RelationDivergence.apply(student, teacher, mask)  # type: ignore[no-untyped-call]
        for student, teacher in zip(relations_S, relations_T, strict=True)
    ]
    return torch.stack(losses).sum()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def pieces(tensor: Tensor, elements: int) -> Iterator[slice]:
    """Yield slices over the rows of `tensor`, each of which makes a temporary of `elements`."""
    at_once = ELEMENTS_AT_ONCE["cpu" if tensor.device.type == "cpu" else "cuda"]
    step = max(1, at_once // max(1, elements))
    return (slice(start, start + step) for start in range(0, len(tensor), step))


def _distill(
    logits_S: Tensor,
    logits_T: Tensor,
    temperature: float | Tensor,
    *,
    squared: bool,
    less_entropy: bool,
) -> Tensor:
    student, teacher = logits_S.flatten(0, -2), logits_T.flatten(0, -2)
    if not isinstance(temperature, Tensor):
        # Filled on the device: a copy from the host would wait for it.
        temperature = student.new_full((), temperature, dtype=_exact(student))
    rows = temperature.to(_exact(student)).reshape(-1, 1).expand(len(student), 1)
    loss: Tensor = _SoftTargetLoss.apply(  # type: ignore[no-untyped-call]
        student, teacher, rows, squared, less_entropy
    )
    return loss


def _divergence_(log_student: Tensor, log_teacher: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of each row; `log_teacher` is used up."""
    return log_teacher.sub_(log_student).mul_(teacher).sum(-1)


class _SoftTargetLoss(torch.autograd.Function):
    """Mean of KL or cross entropy of softened rows, whose gradient is made on the way forward.

    With p the student's and q the teacher's probabilities at temperature T, the gradient of a row's
    loss on the student's logits is (p - q) / T, for both. p - q alone is kept, and in the backward
    pass multiplied in float32 by what depends on the row and on the rest of the graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        temperature: Tensor,
        squared: bool,
        less_entropy: bool,
    ) -> Tensor:
        rows, classes = student.shape
        exact = _exact(student)
        losses = student.new_empty(rows, dtype=exact)
        differences = None
        if ctx.needs_input_grad[0]:
            # The gradient has the logits' precision in any case; but float16 would lose small
            # differences here, before the scale of the loss lifts them.
            kept = exact if student.dtype == torch.float16 else student.dtype
            differences = torch.empty_like(student, dtype=kept)
        for piece in pieces(student, classes):
            log_p = torch.log_softmax(student[piece].to(exact) / temperature[piece], dim=-1)
            log_q = torch.log_softmax(teacher[piece].to(exact) / temperature[piece], dim=-1)
            q = log_q.exp()
            if less_entropy:
                losses[piece] = _divergence_(log_p, log_q, q)
            else:
                losses[piece] = torch.mul(log_p, q, out=log_q).sum(-1).neg_()
            if differences is not None:
                torch.sub(log_p.exp_(), q, out=differences[piece])
        factors = (temperature.square() if squared else torch.ones_like(temperature)) / rows
        ctx.dtype = student.dtype
        ctx.save_for_backward(differences, factors / temperature)
        return (losses * factors.squeeze(-1)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        differences, factors = ctx.saved_tensors
        gradient = torch.empty_like(differences, dtype=ctx.dtype)
        torch.mul(differences, factors * outer[0], out=gradient)
        return gradient, None, None, None, None


class _RelationDivergence(torch.autograd.Function):
    """Divergence of one relation; no tensor of [length, length] outlives the forward pass.

    With G the gradient on the scores x xᵀ / √size, that on x is (G + Gᵀ) x / √size.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = student.shape
        exact = _exact(student)
        total = student.new_zeros((), dtype=exact)
        gradient = torch.empty_like(student, dtype=exact) if ctx.needs_input_grad[0] else None
        # Autocast would multiply in half precision.
        with torch.autocast(student.device.type, enabled=False):
            for piece in pieces(student, heads * length * length):
                real = None if mask is None else mask[piece, None, :]
                x = student[piece].to(exact)
                log_p = _log_relation(x, real)
                log_q = _log_relation(teacher[piece].to(exact), real)
                q = log_q.exp()
                divergence = _divergence_(log_p, log_q, q)
                total += divergence.sum() if real is None else (divergence * real).sum()
                if gradient is not None:
                    outer = log_p.exp_().sub_(q)
                    if real is not None:
                        outer.mul_(real.unsqueeze(-1))
                    gradient[piece] = (outer + outer.transpose(-1, -2)) @ x
        places = batch * length if mask is None else mask.sum()
        factor = 1 / (total.new_zeros(()) + places * heads).clamp(min=1)
        if gradient is not None:
            gradient *= factor * student.shape[-1] ** -0.5
        ctx.dtype = student.dtype
        ctx.save_for_backward(gradient)
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer[0]).to(ctx.dtype), None, None


def _log_relation(x: Tensor, real: Tensor | None) -> Tensor:
    """Return log softmax(x xᵀ / √size), [batch, heads, length, length].

    Args:
        x: [batch, heads, length, size].
        real: bool [batch, 1, length], or None where nothing is padded.
    """
    scores = (x * x.shape[-1] ** -0.5) @ x.transpose(-1, -2)
    if real is not None:
        # A finite number: an instance without a real token then gives no NaN.
        scores.masked_fill_(~real.unsqueeze(-2), torch.finfo(scores.dtype).min)
    return torch.log_softmax(scores, dim=-1)
