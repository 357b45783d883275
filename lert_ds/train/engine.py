"""The one home of DeepSpeed: an objective under its engine, behind a small typed surface."""

import datetime
import logging
import os
import socket
import types
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lert_ds import distributed, op_builds
from lert_ds.errors import CheckpointError, ConfigError
from lert_ds.machine import keep_freed_memory
from lert_ds.objective import AnyBatch, StepOutput
from lert_ds.train import deepspeed_config
from lert_ds.train.fragments import WEIGHTS, Fragment, Fragments, Place, deal
from lert_ds.train.optim import Lamb, Lion, OptimizerConfig, ParameterOptions, parameter_groups
from lert_ds.train.optimizer_layout import Numbers, OptimizerLayout

if not torch.cuda.is_available():
    # Before DeepSpeed is imported: it picks its accelerator then, and a CUDA compiler without a
    # device misleads it.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lion import DeepSpeedCPULion
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import safe_get_full_fp32_param

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """The loss or a gradient is not a finite number; raised before the optimizer uses it."""


_NON_FINITE_GRADIENT = "a gradient is inf or nan"


def join_processes(timeout_seconds: float = 1800.0) -> bool:
    """Join the processes that the launcher started, or make a group of one.

    `timeout_seconds`: how long a collective, or the joining, waits for a process. Returns whether
    they were joined just now: who joins them also leaves them.
    """
    deepspeed_logger.setLevel(os.environ.get("LERT_DS_DEEPSPEED_LOG", "WARNING").upper())
    if torch.distributed.is_initialized():
        return False
    _check_device()
    if device().type == "cpu":
        keep_freed_memory()
    op_builds.use_own_programs()
    op_builds.name_plain_architectures()
    op_builds.wait_for_builds()
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    deepspeed.init_distributed(
        dist_backend=get_accelerator().communication_backend_name(), auto_mpi_discovery=False,
        verbose=False, timeout=datetime.timedelta(seconds=timeout_seconds),
    )  # fmt: skip
    distributed.barrier()  # all have mapped the others' memory
    op_builds.free_shared_memory(distributed.rank())
    return True


def _check_device() -> None:
    """Refuse a launch that gives this process no device of its own.

    Raises:
        ConfigError: there are fewer devices to see than processes on this host.
    """
    there = torch.cuda.device_count()
    if torch.cuda.is_available() and distributed.local_rank() >= there:
        raise ConfigError(
            f"LOCAL_RANK = {distributed.local_rank()}, but this process sees {there} GPU"
            f"{'s' if there > 1 else ''}: start one process a GPU, and let each see all of its "
            "host's (srun --gpus-per-node, not --gpus-per-task)"
        )


def leave_processes() -> None:
    """Close the group: without it about one run in 25 aborted after its work was done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device() -> torch.device:
    """Return this process's device."""
    name = get_accelerator().device_name()
    return torch.device("cpu") if name == "cpu" else torch.device(name, distributed.local_rank())


class Engine:
    """An objective that trains under DeepSpeed.

    The trainer sees forward, backward, step and the numbers about them; everything that depends on
    the ZeRO stage or the precision stays here.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: OptimizerConfig,
        tree: dict[str, Any],
        options: Mapping[str, ParameterOptions] = types.MappingProxyType({}),
    ) -> None:
        """Hand `objective` to DeepSpeed; `tree` is a resolved configuration.

        `options`: name of a submodule to what differs for its parameters.

        Raises:
            ConfigError: DeepSpeed refuses the configuration, or it and the optimizer do not fit.
        """
        _check_fits(optimizer, tree)
        if deepspeed_config.precision(tree) == "bf16":
            # DeepSpeed looks for inf a parameter at a time, in eight kernels each (400 of them in
            # LERT-large: 30 ms a step on an H100); the hook below looks at all at once.
            tree = {**tree, "bf16": {"check_grad_overflow": False, **tree["bf16"]}}
        self.tree = tree
        self.precision = deepspeed_config.precision(tree)
        self.stage = deepspeed_config.stage(tree)
        self.device = device()
        groups, self._rate_ratios = parameter_groups(objective, optimizer.weight_decay, options)
        basic = _make_optimizer(groups, optimizer, tree)
        try:
            self._engine, *_ = deepspeed.initialize(model=objective, optimizer=basic, config=tree)
        except deepspeed.DeepSpeedConfigError as error:
            raise ConfigError(f"DeepSpeed refuses the configuration: {error}") from error
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
            raise ConfigError(
                f"DeepSpeed refuses a key of the configuration: {'; '.join(problems)}"
            ) from error
        if self.stage == 0:
            # In bf16 and fp16 DeepSpeed 0.19 takes one stray step on zero gradients here. The rate
            # is 0 until the trainer sets it, so no weight moves; this clears what Adam remembers.
            basic.state.clear()
            for group in basic.param_groups:
                group.pop("step", None)
            if distributed.world_size() == 1:
                # Else every gradient is copied to one tensor and back, to sum over one process.
                # What comes before stays: weights that no loss reaches get gradients of zero.
                self._engine._reduce_non_expert_gradients = lambda *_: None
        basic.register_step_pre_hook(_refuse_non_finite_gradients)

    def __call__(self, batch: AnyBatch, *, step: int) -> StepOutput:
        """Return the objective's output for one micro-batch that is on the device."""
        output: StepOutput = self._engine(batch, step=step)
        return output

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; they are averaged over accumulation and ranks."""
        if self.stage == 0 and self.precision == "fp16":
            # DeepSpeed 0.19 divides by the scale what it has multiplied under ZeRO alone: the
            # gradients would be as many times too small, and Adam would hardly move.
            loss = loss.float() * self._engine.optimizer.loss_scale_config.cur_scale
        self._engine.backward(loss)

    def step(self) -> None:
        """End a micro-batch; at the end of an accumulation the optimizer updates the weights.

        Raises:
            NonFiniteError: a gradient is inf or nan (not in fp16, where the loss scaler skips).
        """
        skipped = self._engine.skipped_steps
        self._engine.step()
        if self._engine.skipped_steps > skipped and self.precision != "fp16":
            # ZeRO skips such an update with a warning, at every step from then on.
            raise NonFiniteError(_NON_FINITE_GRADIENT)

    def at_boundary(self) -> bool:
        """Return whether the next `step` updates the weights."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off."""
        self._engine.train(mode)

    def set_learning_rate(self, value: float) -> None:
        """Use `value` for the updates from now on, times the ratio of a group that has its own."""
        groups = self._engine.optimizer.param_groups
        for group, ratio in zip(groups, self._rate_ratios, strict=True):
            group["lr"] = value * ratio

    def set_batch_size(self, instances: int) -> None:
        """Let the updates from now on take so many instances, over all processes.

        The micro-batch stays, so the accumulation changes, and with it what a loss is divided by.
        Only between two updates.
        """
        if instances != self._engine.train_batch_size():
            self._engine.set_train_batch_size(instances)
            # DeepSpeed updates where its count of micro-batches is a multiple of the accumulation.
            self._engine.micro_steps = 0

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process in one update."""
        return int(self._engine.gradient_accumulation_steps())

    def state_of_scaling(self) -> dict[str, float]:
        """Return the norm of the last gradient and, in fp16, the loss scale and skipped steps."""
        values: dict[str, float] = {}
        norm = self._engine.get_global_grad_norm()
        if norm is not None:
            values["gradient_norm"] = float(norm)
        if self.precision == "fp16":
            optimizer: Any = self._engine.optimizer
            values["loss_scale"] = float(optimizer.loss_scale)
            values["skipped_steps"] = float(self._engine.skipped_steps)
        return values

    def snapshot(self, *, copy: bool) -> tuple[dict[str, Fragment], Numbers]:
        """Return this process's share of weights and optimizer on the host, and its numbers.

        What every process has (ZeRO 0) is dealt out. Without `copy` what is on the host already is
        not copied: it must be written before the next step.
        """
        layout = OptimizerLayout(self._engine)
        pieces = layout.pieces
        if layout.replicated:
            sizes = {piece.name: piece.length for piece in pieces}
            mine = set(deal(sizes, distributed.world_size())[distributed.rank()])
            pieces = [piece for piece in pieces if piece.name in mine]
        fragments = {}
        for piece in pieces:
            tensors = {WEIGHTS: piece.of(piece.buffer), **layout.tensors(piece)}
            fragments[piece.name] = Fragment(
                Place(piece.start, piece.shape),
                {kind: value.to("cpu", copy=copy) for kind, value in tensors.items()},
            )
        return fragments, layout.numbers()

    def restore(self, fragments: Fragments, numbers: Numbers) -> None:
        """Take the state that a checkpoint holds, whatever layout wrote it; all must call it.

        Raises:
            CheckpointError: it is of a model with other parameters.
        """
        layout = OptimizerLayout(self._engine)
        shapes = {piece.name: piece.shape for piece in layout.pieces}
        for name, shape in shapes.items():
            if (other := fragments.shapes.get(name)) != shape:
                raise CheckpointError(
                    f"{fragments.folder}: the model has {name} of shape {list(shape)}, the "
                    f"checkpoint {'none' if other is None else f'of {list(other)}'}; resume with "
                    "the model that wrote it, or start over with overwrite=true"
                )
        for piece in layout.pieces:
            stretch = (piece.name, piece.start, piece.start + piece.length)
            piece.of(piece.buffer).copy_(fragments.read(WEIGHTS, *stretch))
            for kind in fragments.kinds - {WEIGHTS}:
                layout.set_tensor(piece, kind, fragments.read(kind, *stretch))
        layout.set_numbers(numbers)
        layout.refresh_module()

    def full_weights(self) -> dict[str, Tensor]:
        """Return every parameter whole, in fp32 on the host, by its name in the objective.

        In mixed precision these are the master weights. All processes must call it, and all but the
        main one get an empty dict. Tied parameters appear once.
        """
        weights: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            # ZeRO-0 in fp32 has no master copy: the weights are it.
            full = safe_get_full_fp32_param(parameter)
            if full is None:
                full = parameter.detach()
            if distributed.is_main():
                shape = getattr(parameter, "ds_shape", parameter.shape)
                weights[name] = full.reshape(shape).to("cpu", torch.float32, copy=True)
        return weights


def partition_frozen(module: nn.Module) -> nn.Module:
    """Cut a frozen module's weights into a piece a process (ZeRO-3 inference) and return it.

    Its forward gathers them layer by layer, so all processes must call it together, as often. The
    weights keep their type; `module` must be on the device.
    """
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        # Its own linear function, which it would put in torch's place for the whole process, saves
        # memory in a backward pass alone; there is none here.
        "zero_optimization": {"stage": 3, "memory_efficient_linear": False},
        "bf16": {"enabled": next(module.parameters()).dtype == torch.bfloat16},
    }
    engine, *_ = deepspeed.initialize(model=module, config=tree)
    partitioned: nn.Module = engine.module
    partitioned.eval()
    # The hooks that gather belong to the engine; a plain attribute, so that no state dict sees it.
    object.__setattr__(partitioned, "_kept_by", engine)
    return partitioned


def _check_fits(optimizer: OptimizerConfig, tree: Mapping[str, Any]) -> None:
    stage = deepspeed_config.stage(tree)
    if optimizer.name == "lamb" and stage > 0:
        raise ConfigError(
            f"optimizer.name = lamb with ZeRO stage {stage}: its trust ratio needs whole "
            "parameters, which ZeRO cuts up; use a zero0 configuration or adamw"
        )
    if deepspeed_config.precision(tree) == "fp16" and not get_accelerator().is_fp16_supported():
        raise ConfigError("fp16.enabled = true: this device has no fp16; use a bf16 configuration")


def _make_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, tree: dict[str, Any]
) -> torch.optim.Optimizer:
    """Return the optimizer; its rate is 0 until the trainer sets it."""
    betas = (config.beta1, config.beta2)
    offload = deepspeed_config.offloads_optimizer(tree)
    adam = {"lr": 0.0, "betas": betas, "eps": config.epsilon}
    optimizer: torch.optim.Optimizer
    if config.name == "adamw" and offload:
        optimizer = DeepSpeedCPUAdam(
            groups, **adam, bias_correction=config.bias_correction, adamw_mode=True
        )
    elif config.name == "adamw":
        optimizer = FusedAdam(groups, **adam, bias_correction=config.bias_correction)
    elif config.name == "lamb":
        optimizer = Lamb(groups, lr=0.0, betas=betas, eps=config.epsilon,
                         bias_correction=config.bias_correction)  # fmt: skip
    elif offload:
        optimizer = DeepSpeedCPULion(groups, lr=0.0, betas=betas)
    else:
        tree["zero_allow_untested_optimizer"] = True  # Lion is element-wise: partitions suit it
        optimizer = Lion(groups, lr=0.0, betas=betas)
    return optimizer


def _refuse_non_finite_gradients(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Stop before the optimizer spoils the weights.

    One pass over this process's share of the gradients, about a tenth of Adam's own traffic. In
    fp16 DeepSpeed has skipped the update before this when the scaled gradients overflowed.
    """
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if not gradients:
        return
    norms = torch._foreach_norm(gradients)
    if not bool(torch.isfinite(torch.stack([norm.float() for norm in norms]).sum())):
        raise NonFiniteError(_NON_FINITE_GRADIENT)
