"""Which parameters decay, and the optimizers that DeepSpeed has no kernel for on every device."""

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from lert_ds.config import Config


class OptimizerConfig(Config):
    """The optimizer; the defaults are LERT's (`src/optimization.py` of ymcui/LERT)."""

    name: Literal["adamw", "lamb", "lion"] = "adamw"
    """adamw: DeepSpeed's FusedAdam, its CPUAdam under offload; lamb: ZeRO 0 only; lion. All three
    update lists of tensors at once."""
    beta1: float = 0.9
    """Decay of the running mean of the gradient."""
    beta2: float = 0.999
    """Decay of the running mean of its square (lion: of its momentum; 0.99 is usual there)."""
    epsilon: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled, and none on biases and LayerNorm."""
    bias_correction: bool = False
    """LERT's AdamW has none: its first update is (1 - beta1) / sqrt(1 - beta2), 3.2, times a
    corrected one, which the warm-up absorbs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("beta1", "beta2"):
            if not 0 <= (value := getattr(self, key)) < 1:
                raise ValueError(f"{key} = {value}: must be from 0 to below 1")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon = {self.epsilon}: must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay = {self.weight_decay}: must be 0 or more")
        return self


class ParameterOptions(NamedTuple):
    """What is different for some of the parameters."""

    rate_ratio: float = 1.0
    """Their learning rate over that of the run, at every step."""
    weight_decay: float | None = None
    """Of their matrices; None: that of the run."""


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    options: Mapping[str, ParameterOptions] = types.MappingProxyType({}),
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the trainable parameters in groups, and the rate ratio of each group.

    Matrices decay, vectors do not: LERT excludes names with "LayerNorm" and "bias", and these are
    exactly the parameters of one dimension. A shared parameter (the tied decoder) appears once.

    Args:
        module: Whose parameters.
        weight_decay: Of matrices.
        options: Name of a submodule to what differs for its parameters.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own = next((o for prefix, o in options.items() if name.startswith(f"{prefix}.")), None)
        own = own or ParameterOptions()
        decay = weight_decay if own.weight_decay is None else own.weight_decay
        key = (own.rate_ratio, decay if _dimensions(parameter) > 1 else 0.0)
        groups.setdefault(key, []).append(parameter)
    # Matrices before vectors, the run's own rate first: the order is part of a checkpoint.
    ordered = sorted(groups, key=lambda key: (key[0] != 1.0, key[0], key[1] == 0.0, key[1]))
    return (
        [{"params": groups[key], "weight_decay": key[1]} for key in ordered],
        [key[0] for key in ordered],
    )


def _dimensions(parameter: Tensor) -> int:
    """Return the dimensions of a parameter, also of one that ZeRO-3 has taken apart."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


class _Optimizer(torch.optim.Optimizer):
    """What the optimizers below share: state once, then one pass over all parameters of a group.

    Operations are on lists of tensors: on a GPU one launch for hundreds of parameters, where a
    loop over them would launch some thousand kernels a step.
    """

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        with torch.no_grad():
            for group in self.param_groups:
                parameters = [p for p in group["params"] if p.grad is not None]
                if parameters:
                    gradients = [parameter.grad for parameter in parameters]
                    self._update(parameters, gradients, group)

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        raise AssertionError("each optimizer has its own")

    def _state(self, parameters: list[Tensor], *names: str) -> list[list[Tensor]]:
        """Return the tensors of each name, one a parameter; they start at zero."""
        for parameter in parameters:
            for name in names:
                if name not in self.state[parameter]:
                    self.state[parameter][name] = torch.zeros_like(parameter)
        return [[self.state[parameter][name] for parameter in parameters] for name in names]


class Lamb(_Optimizer):
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), trust ratio per parameter.

    `ratio = |p| / |update|` (1 where either is 0) scales Adam's update plus the decay. The norms
    are of whole parameters, so it cannot run on the flat partitions of ZeRO.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        bias_correction: bool,
    ) -> None:
        """Take the groups of `parameter_groups`."""
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction}
        )

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        means, squares = self._state(parameters, "exp_avg", "exp_avg_sq")
        steps = []
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            steps.append(state["step"])
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = squares
        if group["bias_correction"]:
            roots = list(torch._foreach_div(squares, [1 - beta2**step for step in steps]))
            means = list(torch._foreach_div(means, [1 - beta1**step for step in steps]))
        roots = list(torch._foreach_sqrt(roots))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        sizes = torch.stack(torch._foreach_norm(parameters))
        changes = torch.stack(torch._foreach_norm(updates))
        ratios = torch.where((sizes > 0) & (changes > 0), sizes / changes, torch.ones_like(sizes))
        torch._foreach_mul_(updates, list((group["lr"] * ratios).unbind()))
        torch._foreach_sub_(parameters, updates)


class Lion(_Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, program 1): the sign of an interpolated momentum.

    Element-wise, so it runs on ZeRO's partitions. Its usual rate is a third to a tenth of Adam's.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float]
    ) -> None:
        """Take the groups of `parameter_groups`."""
        super().__init__(groups, {"lr": lr, "betas": betas})

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        (means,) = self._state(parameters, "exp_avg")
        beta1, beta2 = group["betas"]
        directions = torch._foreach_lerp(means, gradients, 1 - beta1)
        torch._foreach_sign_(directions)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])
        torch._foreach_lerp_(means, gradients, 1 - beta2)
