"""Chooses the kernels of a run on its device, and puts them into a model."""

import dataclasses
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import (
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertSelfAttention,
    BertSelfOutput,
)

from lert_ds.errors import ConfigError
from lert_ds.kernels import attention, cheap_dropout, cpu_ops, varlen
from lert_ds.kernels.cheap_dropout import use_cheap_masks
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.kernels.modules import (
    FusedIntermediate,
    FusedOutput,
    FusedSelfAttention,
    FusedSelfOutput,
    tell,
)

logger = logging.getLogger(__name__)

_ATTENTION = {
    "plain": "sdpa",
    "lots": cheap_dropout.NAME,
    "fused": attention.NAME,
    "varlen": varlen.NAME,
}
_CPU = {
    "attention": "fused", "qkv": "fused", "activation": "fused", "residual": "fused",
    "loss": "fused", "dropout": "lots", "compile": "off",
}  # fmt: skip
# torch.compile fuses activation and residual by itself.
_CUDA = {
    "attention": "plain", "qkv": "plain", "activation": "plain", "residual": "plain",
    "loss": "fused", "dropout": "plain", "compile": "layers",
}  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """What computes each part of a model: `KernelsConfig` without any `auto`."""

    attention: str
    qkv: str
    activation: str
    residual: str
    loss: str
    dropout: str
    compile: str
    cuda_graphs: bool
    fp8: str

    def describe(self) -> str:
        """Return the names in one line."""
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items())


def choose(
    config: KernelsConfig, device: torch.device, *, stage: int = 0, lengths_vary: bool = False
) -> Kernels:
    """Return the kernels of a run, `auto` resolved and what cannot be replaced by what can, aloud.

    Args:
        config: What is asked for.
        device: Where the run computes.
        stage: Of ZeRO.
        lengths_vary: Whether batches have many lengths: each would be compiled anew.

    Raises:
        ConfigError: a library or an instruction set that is named is not there.
    """
    defaults = _CUDA if device.type == "cuda" else _CPU
    names: dict[str, Any] = {
        name: defaults[name] if value == "auto" else value
        for name, value in dict(config).items()
        if name in defaults
    }
    if config.compile == "auto" and (stage == 3 or lengths_vary):
        names["compile"] = "off"
        if device.type == "cuda":
            names |= {
                name: "fused" for name in ("activation", "residual") if dict(config)[name] == "auto"
            }
    if names["compile"] == "layers" and stage == 3:
        tell("compile: ZeRO-3 gathers weights between the operations of a layer: not compiled")
        names["compile"] = "off"
    if device.type == "cpu":
        if names["attention"] == "varlen":
            tell("attention: varlen is for GPUs; fused does the same on a processor")
            names["attention"] = "fused"
        wants = [name for name in ("attention", "activation", "residual") if names[name] == "fused"]
        if wants and cpu_ops.load() is None:
            names |= dict.fromkeys(wants, "plain")
            if "attention" in wants:
                names["attention"] = "lots"
    else:
        if names["attention"] in ("fused", "lots"):
            tell(f"attention: {names['attention']} is for processors; PyTorch's is used")
            names["attention"] = "plain"
        names["dropout"] = "plain"
    if config.fp8 != "off":
        _check_fp8(device)
    if config.cuda_graphs and (device.type != "cuda" or names["compile"] == "off"):
        tell("cuda_graphs: only compiled layers on a GPU are replayed: off")
    graphs = config.cuda_graphs and device.type == "cuda" and names["compile"] != "off"
    return Kernels(**names, cuda_graphs=graphs, fp8=config.fp8)


def _check_fp8(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            "kernels.fp8: this device does not multiply in 8 bits (H100, L40S and later do); "
            "set kernels.fp8=off"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError("kernels.fp8 = torchao: pip install torchao, or set kernels.fp8=off")


def use_kernels(model: PreTrainedModel, kernels: Kernels) -> None:
    """Put kernels into a model, in place; no weight and no name of a weight changes."""
    replaced: dict[type[nn.Module], type[nn.Module]] = {}
    if kernels.qkv == "fused":
        replaced[BertSelfAttention] = FusedSelfAttention
    if kernels.activation == "fused":
        replaced[BertIntermediate] = FusedIntermediate
    if kernels.residual == "fused":
        replaced |= {BertSelfOutput: FusedSelfOutput, BertOutput: FusedOutput}
    for module in model.modules():
        # Exactly these: a layer that pruning has taken apart keeps its own.
        if (other := replaced.get(type(module))) is not None:
            module.__class__ = other
    if kernels.dropout == "lots":
        use_cheap_masks(model)
    model.set_attn_implementation(_ATTENTION[kernels.attention])
    if kernels.fp8 == "torchao":
        _use_fp8(model)
    if kernels.compile == "layers":
        for module in model.modules():
            if isinstance(module, BertLayer):
                module.compile(
                    dynamic=False, mode="reduce-overhead" if kernels.cuda_graphs else None
                )


def _use_fp8(model: nn.Module) -> None:
    """Multiply in 8 bits in the layers, weights and activations scaled a tensor at a time."""
    from torchao.float8 import convert_to_float8_training

    def of_a_layer(_: nn.Module, name: str) -> bool:
        return ".layer." in f".{name}"

    convert_to_float8_training(model, module_filter_fn=of_a_layer)
