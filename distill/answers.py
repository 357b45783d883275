"""What a teacher says of a batch, whole or as it is kept: its logits, and what its layers gave.

    logits [rows, 21128] ─top→   the k largest, and the logarithm of the others' mass at the
                                 distillation's temperature: 260 bytes a row of 64
                         ─bytes→ all of them in 8 bits between the row's smallest and largest: 21 kB
    loss of the largest: that of all logits, with the others as one class

With q the teacher's and p the student's probabilities at temperature T, K the k largest of the
teacher's and R the rest, the loss of a row is

    - Σ_K q log p - q(R) log p(R)        (and + Σ_K q log q + q(R) log q(R) for `kl`)

a lower bound of the whole one, equal to it where R is empty. Its gradient on the student's logits
is (p - q) / T in K and p (1 - q(R) / p(R)) / T in R: the student learns how much the rest weighs,
and not how it is divided.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.features import Source
from distill.losses import pieces


class TopLogits(NamedTuple):
    """The largest logits of some rows."""

    values: Tensor
    """[rows, k], the largest first."""
    indices: Tensor
    """int64 [rows, k]: their classes."""
    rest: Tensor
    """float32 [rows]: log Σ exp(logit / temperature) over all other classes."""

    def to(self, device: torch.device) -> "TopLogits":
        """Return these on `device`."""
        return TopLogits(*(tensor.to(device, non_blocking=True) for tensor in self))


Taught = Tensor | TopLogits
"""A head's logits: [rows, classes], or the largest of them."""


class Answer(NamedTuple):
    """What one teacher says of the rows of a batch."""

    logits: dict[str, Taught]
    """By head."""
    sources: dict[Source, Tensor]
    """What `Taps` took: [instances, length, width]."""

    def to(self, device: torch.device) -> "Answer":
        """Return this on `device`."""
        return Answer(
            {head: logits.to(device) for head, logits in self.logits.items()},
            {source: tensor.to(device) for source, tensor in self.sources.items()},
        )


def keep_top(logits: Tensor, k: int, temperature: float) -> TopLogits:
    """Return the `k` largest of the logits [rows, classes], k < classes, and the others' mass."""
    wide = logits.float()
    values, indices = wide.topk(k, dim=-1)
    others = (wide / temperature).scatter_(-1, indices, -torch.inf)
    return TopLogits(values, indices, others.logsumexp(-1))


def to_bytes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return all logits in 8 bits each.

    Returns:
        uint8 [rows, classes], and float32 [rows, 2]: the logit that 0 stands for, and the step.

    Args:
        logits: [rows, classes].
    """
    wide = logits.float()
    smallest, largest = wide.aminmax(dim=-1, keepdim=True)
    step = ((largest - smallest) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    codes = ((wide - smallest) / step).round_().clamp_(0, 255).to(torch.uint8)
    return codes, torch.cat([smallest, step], dim=-1)


def from_bytes(codes: Tensor, scales: Tensor) -> Tensor:
    """Return float32 [rows, classes] of what `to_bytes` made."""
    return torch.addcmul(scales[:, :1], codes.float(), scales[:, 1:])


def top_loss(
    student: Tensor, teacher: TopLogits, temperature: float, *, squared: bool, less_entropy: bool
) -> Tensor:
    """Return the mean over rows of the loss of the module's head, in float32.

    Args:
        student: [rows, classes], at least one row.
        teacher: The same rows.
        temperature: Divides the logits of both; the one that `teacher.rest` was taken at.
        squared: Times temperature².
        less_entropy: Less the teacher's entropy: 0 where both agree.
    """
    loss: Tensor = _TopLoss.apply(  # type: ignore[no-untyped-call]
        student, *teacher, temperature, squared, less_entropy
    )
    return loss


class _TopLoss(torch.autograd.Function):
    """The loss, whose gradient is made on the way forward: see `losses._SoftTargetLoss`."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        values: Tensor,
        indices: Tensor,
        rest: Tensor,
        temperature: float,
        squared: bool,
        less_entropy: bool,
    ) -> Tensor:
        scaled = torch.cat([values.float() / temperature, rest.float().unsqueeze(-1)], dim=-1)
        log_q = scaled.log_softmax(-1)  # [rows, k + 1]: the last is the rest's
        q = log_q.exp()
        gradient = None
        if ctx.needs_input_grad[0]:
            kept = torch.float32 if student.dtype == torch.float16 else student.dtype
            gradient = torch.empty_like(student, dtype=kept)
        total = log_q.new_zeros(())
        for piece in pieces(student, student.shape[-1]):
            log_p = (student[piece].float() / temperature).log_softmax(-1)
            log_top = log_p.gather(-1, indices[piece])
            others = log_p.exp_().scatter_(-1, indices[piece], 0.0)
            # A sum, and not 1 less the top: where the rest is nearly nothing, no digit would stay.
            p_rest = others.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            log_all = torch.cat([log_top, p_rest.log()], dim=-1)
            # Where nothing is left, q is 0 and its logarithm -inf: their product is 0.
            total -= (q[piece] * log_all).sum()
            if less_entropy:
                total += torch.xlogy(q[piece], q[piece]).sum()
            if gradient is not None:
                others *= 1 - q[piece][:, -1:] / p_rest
                others.scatter_(-1, indices[piece], log_top.exp_() - q[piece][:, :-1])
                gradient[piece] = others
        factor = (temperature**2 if squared else 1.0) / len(student)
        ctx.save_for_backward(gradient)
        ctx.factor, ctx.dtype = factor / temperature, student.dtype
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        found = torch.empty_like(gradient, dtype=ctx.dtype)
        rows = (outer[0] * ctx.factor).expand(len(gradient), 1)  # multiplied in float32
        return (torch.mul(gradient, rows, out=found), *(None,) * 6)
