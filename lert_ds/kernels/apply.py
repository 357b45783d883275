"""Chooses the kernels of a run on its device, and puts them into a model."""

import dataclasses
import importlib.util
from dataclasses import dataclass

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
from lert_ds.kernels import attention, cheap_dropout, cpu_ops, products, varlen
from lert_ds.kernels.cheap_dropout import use_cheap_masks
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.kernels.modules import (
    CompiledLayer,
    FusedIntermediate,
    FusedOutput,
    FusedSelfAttention,
    FusedSelfOutput,
    ReplayedLayer,
    become,
    tell,
)

_ATTENTION = {
    "plain": "sdpa",
    "lots": cheap_dropout.NAME,
    "fused": attention.NAME,
    "varlen": varlen.NAME,
}
_OF_A_LAYER = ("attention", "activation", "residual", "dropout", "products")
_PROCESSORS = ("lots", "fused", "onednn")
_CPU = {
    "attention": "fused", "qkv": "fused", "activation": "fused", "residual": "fused",
    "loss": "fused", "dropout": "lots", "products": "plain", "compile": "off",
}  # fmt: skip
# torch.compile fuses activation and residual by itself, and cannot see into a processor's kernels.
_COMPILED = {
    "attention": "plain", "qkv": "plain", "activation": "plain", "residual": "plain",
    "loss": "fused", "dropout": "plain", "products": "plain", "compile": "layers",
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
    products: str
    compile: str
    cuda_graphs: bool
    fp8: str

    def describe(self) -> str:
        """Return the names in one line."""
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items())


def choose(
    config: KernelsConfig,
    device: torch.device,
    *,
    stage: int = 0,
    half: bool = False,
    lengths_vary: bool = False,
    parts_documents: bool = False,
) -> Kernels:
    """Return the kernels of a run, `auto` resolved and what cannot be replaced by what can, aloud.

    Args:
        config: What is asked for.
        device: Where the run computes.
        stage: Of ZeRO.
        half: Whether it trains in a half precision.
        lengths_vary: Whether batches have many lengths: each would be compiled anew.
        parts_documents: Whether documents of an instance do not see each other.

    Raises:
        ConfigError: a library or an instruction set that is named is not there.
    """
    if config.fp8 != "off":
        _check_fp8(device)  # before anything is built
    asked = dict(config)
    on_gpu = device.type == "cuda"
    defaults = dict(_COMPILED if on_gpu or config.compile == "layers" else _CPU)
    if on_gpu and parts_documents:
        defaults["attention"] = "varlen"
    if not on_gpu and not half and defaults["compile"] == "off" and products.prefers_onednn():
        defaults["products"] = "onednn"
    if stage == 3 or lengths_vary:
        defaults["compile"] = "off"
        if on_gpu:
            defaults |= {"activation": "fused", "residual": "fused"}
    names: dict[str, str] = {
        name: defaults[name] if asked[name] == "auto" else asked[name] for name in defaults
    }
    if names["compile"] == "layers" and stage == 3:
        tell("compile: ZeRO-3 gathers weights between the operations of a layer: not compiled")
        names["compile"] = "off"
    if on_gpu:
        _check_on_gpu(names)
    else:
        _check_on_processor(names)
    graphs = config.cuda_graphs and on_gpu and names["compile"] != "off"
    if config.cuda_graphs and not graphs:
        tell("cuda_graphs: only compiled layers on a GPU are replayed: off")
    return Kernels(**names, cuda_graphs=graphs, fp8=config.fp8)


def _check_on_processor(names: dict[str, str]) -> None:
    """Replace what a processor cannot do, aloud."""
    if names["attention"] == "varlen":
        tell("attention: varlen is for GPUs; fused does the same on a processor")
        names["attention"] = "fused"
    if names["products"] == "onednn" and not products.has_onednn():
        tell("products: this PyTorch has no oneDNN: plain")
        names["products"] = "plain"
    own = [f"{name}={value}" for name in _OF_A_LAYER if (value := names[name]) in _PROCESSORS]
    if own and names["compile"] == "layers":
        tell(f"compile: a compiler cannot see into {', '.join(own)}: not compiled")
        names["compile"] = "off"
    wants = [name for name in ("attention", "activation", "residual") if names[name] == "fused"]
    if wants and cpu_ops.load() is None:
        names |= dict.fromkeys(wants, "plain")
        if "attention" in wants:
            names["attention"] = "lots"


def _check_on_gpu(names: dict[str, str]) -> None:
    """Replace what a GPU does not need, aloud where it was asked for."""
    if names["attention"] in _PROCESSORS:
        tell(f"attention: {names['attention']} is for processors; PyTorch's is used")
        names["attention"] = "plain"
    if names["products"] == "onednn":
        tell("products: onednn is for processors; the GPU's library is used")
    names |= {"dropout": "plain", "products": "plain"}


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
    if kernels.compile == "layers":
        replaced[BertLayer] = ReplayedLayer if kernels.cuda_graphs else CompiledLayer
        _allow_compilations(sum(type(module) is BertLayer for module in model.modules()))
    for module in model.modules():
        # Exactly these: a layer that pruning has taken apart keeps its own.
        if (other := replaced.get(type(module))) is not None:
            become(module, other)
    if kernels.products == "onednn":
        products.use_onednn(model)
    if kernels.dropout == "lots":
        use_cheap_masks(model)
    model.set_attn_implementation(_ATTENTION[kernels.attention])
    if kernels.fp8 == "torchao":
        _use_fp8(model)


def _allow_compilations(layers: int) -> None:
    """Let as many be compiled as a model may need, where dynamo gives up after 8.

    Layers that were pruned to shapes of their own share none: each is compiled for training and
    evaluation, with a mask and without. The rest is for batches of other shapes.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * layers + 8)


def _use_fp8(model: nn.Module) -> None:
    """Multiply in 8 bits in the layers, weights and activations scaled a tensor at a time."""
    from torchao.float8 import convert_to_float8_training

    def of_a_layer(_: nn.Module, name: str) -> bool:
        return ".layer." in f".{name}"

    convert_to_float8_training(model, module_filter_fn=of_a_layer)
