"""Where DeepSpeed's optimizers keep the numbers of each parameter, in one view.

    stage and precision             fp32 weights and Adam's moments lie in           who has them
    ZeRO 0, fp32                    the parameter itself                             every process
    ZeRO 0, bf16 or fp16            a flat copy of a group (or a copy a parameter)   every process
    ZeRO 1 and 2                    a flat piece of a group                          its owner
    ZeRO 3                          a flat buffer of pieces of parameters            its owner

Everywhere a parameter has at most one contiguous stretch a process: a `Piece` of a buffer that is
also the key of the basic optimizer's state. Saving walks the pieces; loading fills them.

Held to DeepSpeed 0.19's attributes by tests of every stage and precision; it imports nothing of it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Numbers = dict[str, float]

_SCALER_NUMBERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Piece(NamedTuple):
    """A stretch of one parameter that this process updates."""

    name: str
    """Of the parameter in its module."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """In the flattened parameter."""
    length: int
    buffer: Tensor
    """What the optimizer updates, fp32; the key of its state."""
    offset: int
    """Of the stretch in the flattened buffer."""

    def of(self, tensor: Tensor) -> Tensor:
        """Return this stretch of a tensor that is shaped like the buffer: a flat view."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.length]


class OptimizerLayout:
    """The pieces of one process, and the numbers beside them, of an optimizer under DeepSpeed."""

    def __init__(self, engine: Any) -> None:
        """Look at `engine`, a DeepSpeedEngine, which must be between two optimizer steps."""
        self._engine = engine
        self._wrapper = engine.optimizer
        self._basic: torch.optim.Optimizer = getattr(self._wrapper, "optimizer", self._wrapper)
        names = {parameter: name for name, parameter in engine.module.named_parameters()}
        stage = engine.zero_optimization_stage()
        self.replicated = stage == 0
        """Every process has every piece."""
        self.pieces: list[Piece] = list(_pieces(self._wrapper, names, stage, engine.module))

    def tensors(self, piece: Piece) -> dict[str, Tensor]:
        """Return the optimizer's tensors for a piece: flat views; none before its first step."""
        state = self._basic.state.get(piece.buffer, {})
        return {
            kind: piece.of(value)
            for kind, value in state.items()
            if isinstance(value, Tensor) and value.shape == piece.buffer.shape
        }

    def set_tensor(self, piece: Piece, kind: str, values: Tensor) -> None:
        """Put `values` where the optimizer keeps `kind` of a piece."""
        state = self._basic.state[piece.buffer]
        if kind not in state:
            state[kind] = torch.zeros_like(piece.buffer.detach())
        piece.of(state[kind]).copy_(values)

    def numbers(self) -> Numbers:
        """Return what is not a tensor: counts of steps, the loss scale and what moves it."""
        found: Numbers = {
            f"engine/{name}": getattr(self._engine, name)
            for name in ("global_steps", "skipped_steps")
        }
        for piece in self.pieces[:1]:  # all parameters are updated in the same steps
            state = self._basic.state.get(piece.buffer, {})
            found |= {f"state/{k}": v for k, v in state.items() if isinstance(v, int | float)}
        for scaler in self._scalers():
            found |= {
                f"scaler/{name}": value
                for name in _SCALER_NUMBERS
                if isinstance(value := getattr(scaler, name, None), int | float)
            }
        for scaler in self._gradient_scalers():
            found |= {f"gradient_scaler/{k}": v for k, v in scaler.state_dict().items()}
        return found

    def set_numbers(self, numbers: Mapping[str, float]) -> None:
        """Restore what `numbers` gave; the scaler's only where there is one."""
        groups: dict[str, Numbers] = {}
        for key, value in numbers.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        for name, value in groups.get("engine", {}).items():
            setattr(self._engine, name, value)
        steps = int(self._engine.global_steps)
        self._engine.micro_steps = steps * self._engine.gradient_accumulation_steps()
        self._engine.global_samples = steps * self._engine.train_batch_size()
        for piece in self.pieces:
            self._basic.state[piece.buffer].update(groups.get("state", {}))
        for scaler in self._scalers():
            for name, value in groups.get("scaler", {}).items():
                setattr(scaler, name, value)
        for scaler in self._gradient_scalers():
            if state := groups.get("gradient_scaler"):
                scaler.load_state_dict(state)

    @torch.no_grad()
    def refresh_module(self) -> None:
        """Give the module the weights of the buffers; all processes must call it together."""
        wrapper = self._wrapper
        if hasattr(wrapper, "fp16_partitioned_groups_flat"):
            _refresh_stage_3(wrapper)
        elif hasattr(wrapper, "update_lp_params"):
            wrapper.update_lp_params()
        else:
            for piece, parameter in self._low_precision():
                parameter.view(-1).copy_(piece.of(piece.buffer))

    def _low_precision(self) -> Iterator[tuple[Piece, Tensor]]:
        parameters = dict(self._engine.module.named_parameters())
        for piece in self.pieces:
            parameter = parameters[piece.name].detach()
            if parameter.data_ptr() != piece.buffer.data_ptr():
                yield piece, parameter

    def _scalers(self) -> list[Any]:
        """Return what moves the loss scale in fp16; a fixed scale is configuration."""
        found = [
            getattr(self._wrapper, name, None) for name in ("loss_scaler", "loss_scale_config")
        ]
        return [
            scaler
            for scaler in found
            if getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False)
        ]

    def _gradient_scalers(self) -> list[Any]:
        found = [
            getattr(self._engine, "torch_autocast_z0_gradscaler", None),
            getattr(self._wrapper, "torch_autocast_gradscaler", None),
        ]
        return [scaler for scaler in found if scaler is not None]


def _pieces(
    wrapper: Any, names: Mapping[Tensor, str], stage: int, module: nn.Module
) -> Iterator[Piece]:
    if stage == 3:
        yield from _stage_3_pieces(wrapper, names)
    elif hasattr(wrapper, "single_partition_of_fp32_groups"):  # ZeRO 1 and 2
        yield from _flat_pieces(
            wrapper.bit16_groups,
            wrapper.bit16_groups_flat,
            wrapper.single_partition_of_fp32_groups,
            names,
        )
    elif hasattr(wrapper, "fp32_groups_flat_partition"):  # ZeRO 1 in bf16
        yield from _flat_pieces(
            wrapper.bf16_groups, wrapper.bf16_groups_flat, wrapper.fp32_groups_flat_partition, names
        )
    elif hasattr(wrapper, "fp32_groups_flat"):  # ZeRO 0 in bf16 and fp16
        yield from _flat_pieces(
            wrapper.fp16_groups, wrapper.fp16_groups_flat, wrapper.fp32_groups_flat, names
        )
    elif hasattr(wrapper, "fp32_groups"):  # the same for optimizers that need whole parameters
        for group, copies in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for parameter, copy in zip(group, copies, strict=True):
                shape = tuple(parameter.shape)
                yield Piece(names[parameter], shape, 0, parameter.numel(), copy, 0)
    else:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield Piece(name, tuple(parameter.shape), 0, parameter.numel(), parameter, 0)


def _flat_pieces(
    groups: list[list[Tensor]],
    flats: list[Tensor],
    buffers: list[Tensor],
    names: Mapping[Tensor, str],
) -> Iterator[Piece]:
    """Yield pieces where the parameters of a group are views of one flat tensor.

    The buffer is one of equal parts of that tensor; which one, its owner's rank tells. Offsets are
    read off the views: DeepSpeed may have changed the order of the parameters (round robin).
    """
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    for group, flat, buffer in zip(groups, flats, buffers, strict=True):
        parts = flat.numel() // buffer.numel()
        first = (rank if parts > 1 else 0) * buffer.numel()
        for parameter in group:
            begin = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
            start, stop = max(begin, first), min(begin + parameter.numel(), first + buffer.numel())
            if start < stop:
                shape = tuple(parameter.shape)
                yield Piece(
                    names[parameter], shape, start - begin, stop - start, buffer, start - first
                )


def _stage_3_pieces(wrapper: Any, names: Mapping[Tensor, str]) -> Iterator[Piece]:
    rank = torch.distributed.get_rank()
    for number, group in enumerate(wrapper.fp16_groups):
        buffer = wrapper.fp32_partitioned_groups_flat[number]
        for parameter in group:
            _, offset, padded = wrapper.grad_position[wrapper.get_param_id(parameter)]
            shape = tuple(parameter.ds_shape)
            start = rank * padded
            length = min(padded, math.prod(shape) - start)
            if length > 0:
                yield Piece(names[parameter], shape, start, length, buffer, int(offset))


def _refresh_stage_3(wrapper: Any) -> None:
    """Do what DeepSpeed's own loading does after it has filled the fp32 buffers."""
    wrapper.checkpoint_event_prologue()
    for low, high in zip(
        wrapper.fp16_partitioned_groups_flat, wrapper.fp32_partitioned_groups_flat, strict=True
    ):
        low.copy_(high.detach())
    for number in range(len(wrapper.fp16_partitioned_groups_flat)):
        wrapper._unflatten_partitioned_parameters(number)
    if wrapper.persistent_parameters:
        wrapper.persistent_parameters[0].partition(wrapper.persistent_parameters)
    wrapper.checkpoint_event_epilogue()
