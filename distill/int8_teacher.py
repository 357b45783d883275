"""A teacher's encoder in int8 on a processor: its linear layers multiply bytes.

Weights are rounded once, a scale a row; what a layer reads is rounded as it comes, one scale and
zero for the tensor (dynamic quantization); sums are in int32, and the result, like everything
between linear layers, in float32. Embeddings and heads stay in float32: the teacher's logits are
what is learnt.

The kernel is oneDNN's, which torch's own compiler uses. Where a processor adds two products of
bytes in 16 bits (x86 without VNNI) what a layer reads has 7 bits, so that no sum overflows:
2 · 127 · 127 is below 32,768, and with 8 bits a layer was a fifth off without a word.
"""

import weakref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lert_ds.errors import ConfigError
from lert_ds.machine import sums_of_bytes_overflow


def _largest_byte() -> int:
    return 127 if sums_of_bytes_overflow() else 255


class Rounding:
    """Rounds tensors to bytes, the same one once: queries, keys and values read the same."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._largest = _largest_byte()
        self._of: weakref.ref[Tensor] | None = None
        self._found: tuple[Tensor, float, int] | None = None

    def __call__(self, features: Tensor) -> tuple[Tensor, float, int]:
        """Return uint8 [rows, width], the scale, and the byte that stands for 0."""
        if self._found is not None and self._of is not None and self._of() is features:
            return self._found
        smallest, largest = (float(end) for end in features.aminmax())
        smallest, largest = min(smallest, 0.0), max(largest, 0.0)
        scale = (largest - smallest) / self._largest or 1.0
        zero = round(-smallest / scale)
        rounded = torch.add(zero, features, alpha=1 / scale).round_().clamp_(0, self._largest)
        self._of = weakref.ref(features)
        self._found = rounded.flatten(0, -2).to(torch.uint8), scale, zero
        return self._found


class Int8Linear(nn.Module):
    """A linear layer of int8 weights, [..., inputs] to float32 [..., outputs]."""

    def __init__(self, linear: nn.Linear, rounding: Rounding | None = None) -> None:
        """Round the weights of `linear`, each row by its largest; `rounding` may be shared."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._rounding = Rounding() if rounding is None else rounding
        weight = linear.weight.detach().float()
        self._scales = weight.abs().amax(dim=1).div(127)
        self._scales.clamp_(min=torch.finfo(torch.float32).tiny)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        rounded = (weight / self._scales.unsqueeze(-1)).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, features: Tensor) -> Tensor:
        """Return features · weightᵀ + bias."""
        rounded, scale, zero = self._rounding(features)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, scale, zero, self._packed, self._scales, self._zeros, self._bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product.view(*features.shape[:-1], self.out_features)


def to_int8(model: PreTrainedModel) -> None:
    """Put int8 layers into the encoder of a frozen model, in place; it works on a CPU from then on.

    Raises:
        ConfigError: this build of torch has no kernels for it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise ConfigError("teacher_precision = int8: this torch is without oneDNN; say fp32")
    _replace(model.get_submodule("bert.encoder"))


def _replace(module: nn.Module) -> None:
    shared = Rounding()
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            read_by_all = name in ("query", "key", "value")
            setattr(module, name, Int8Linear(child, shared if read_by_all else None))
        else:
            _replace(child)
