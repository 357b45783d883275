"""BERT's modules with fused kernels inside; same parameters, same names, same results."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import (
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertSelfAttention,
    BertSelfOutput,
)

from lert_ds.kernels import attention, cpu_ops
from lert_ds.kernels.add_norm import add_norm, bias_gelu, plain_add_norm, plain_bias_gelu
from lert_ds.kernels.products import OneDnnLinear, linear_of

logger = logging.getLogger(__name__)
_told: set[str] = set()
LINEAR = (nn.Linear, OneDnnLinear)


def tell(sentence: str) -> None:
    """Say once in a process what a kernel does not do, and what does it instead."""
    if sentence not in _told:
        _told.add(sentence)
        logger.warning("kernels: %s", sentence)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is linear and no more, so that its weights may be used without it.

    Not where something listens to its calls: ZeRO-3, which gathers its weights then, or a
    distillation that reads its output.
    """
    return type(module) in LINEAR and not _is_listened_to(module)


def _is_listened_to(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


_compiled_add_norm = torch.compile(plain_add_norm, dynamic=True)
_compiled_bias_gelu = torch.compile(plain_bias_gelu, dynamic=True)


def _native(tensor: Tensor) -> Any | None:
    """Return the processor's kernels, which compute in float32: not where more is asked."""
    takes = tensor.device.type == "cpu" and tensor.dtype != torch.float64
    return cpu_ops.load() if takes else None


class FusedSelfAttention(BertSelfAttention):  # type: ignore[misc]
    """Query, key and value in one matrix product."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `BertSelfAttention` does, [batch, length, heads * size].

        Args:
            hidden_states: [batch, length, hidden].
            attention_mask: As the attention function takes it.
            past_key_values: None; an encoder has none.
            **kwargs: What attention functions take.
        """
        parts = (self.query, self.key, self.value)
        if past_key_values is not None or not all(is_plain(part) for part in parts):
            tell("qkv: something reads the projections' outputs or cuts their weights up: plain")
            found: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, attention_mask, past_key_values, **kwargs
            )
            return found
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        batch, length = hidden_states.shape[:2]
        packed = linear_of(self.query)(hidden_states, weight, bias).view(
            batch, length, 3, -1, self.attention_head_size
        )
        dropout = self.dropout.p if self.training else 0.0
        native = _native(hidden_states)
        if native is not None and self.config._attn_implementation == attention.NAME:
            ranges = None
            if attention_mask is not None:
                ranges = attention.ranges_of(attention_mask, batch, length)
            if attention_mask is None or ranges is not None:
                attended = attention.attend_packed(
                    native, packed, ranges, dropout=dropout, scaling=self.scaling
                )
                return attended.reshape(batch, length, -1), None
        function = attention.function_of(self.config._attn_implementation)
        query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))
        output, probabilities = function(
            self, query, key, value, attention_mask,
            dropout=dropout, scaling=self.scaling, **kwargs,
        )  # fmt: skip
        return output.reshape(batch, length, -1).contiguous(), probabilities


class FusedLayerNorm(nn.LayerNorm):
    """A norm that also drops and adds what comes before it.

    A module that is called, so that what listens to it is heard: ZeRO-3 gathers its weights then.
    And the dropout masks are the same in every stage.
    """

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return LayerNorm(dropout(input) + residual), [..., hidden].

        Args:
            input: [..., hidden].
            residual: The same; None: the norm alone.
            dropout: Probability that a unit of `input` is dropped.
        """
        if residual is None:
            return super().forward(input)
        if input.device.type == "cuda":
            return _compiled_add_norm(input, residual, self.weight, self.bias, self.eps, dropout)
        return add_norm(cpu_ops.load(), input, residual, self, dropout)


class _FusedAddNorm:
    """Dropout, sum and LayerNorm in one pass."""

    dense: nn.Module
    dropout: nn.Dropout
    LayerNorm: nn.LayerNorm
    training: bool

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Return LayerNorm(dropout(dense(hidden_states)) + input_tensor), [batch, length, hidden].

        Args:
            hidden_states: [batch, length, inputs].
            input_tensor: [batch, length, hidden], what goes around the layer.
        """
        is_cuda = input_tensor.device.type == "cuda"
        norm = self.LayerNorm
        if not (is_cuda or _native(input_tensor)) or not isinstance(norm, FusedLayerNorm):
            plain: Tensor = super().forward(hidden_states, input_tensor)  # type: ignore[misc]
            return plain
        dropout = self.dropout.p if self.training else 0.0
        normed: Tensor = norm(self.dense(hidden_states), input_tensor, dropout)
        return normed


class FusedSelfOutput(_FusedAddNorm, BertSelfOutput):  # type: ignore[misc]
    """What follows attention."""


class FusedOutput(_FusedAddNorm, BertOutput):  # type: ignore[misc]
    """What follows the feed-forward part."""


class FusedIntermediate(BertIntermediate):  # type: ignore[misc]
    """Bias and GELU in one pass."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return GELU(dense(hidden_states)), [batch, length, intermediate].

        Args:
            hidden_states: [batch, length, hidden].
        """
        native = _native(hidden_states)
        is_cuda = hidden_states.device.type == "cuda"
        is_gelu = type(self.intermediate_act_fn) is GELUActivation
        if not (is_cuda or native is not None) or not is_gelu or not is_plain(self.dense):
            plain: Tensor = super().forward(hidden_states)
            return plain
        product = linear_of(self.dense)(hidden_states, self.dense.weight, None)
        if is_cuda:
            return _compiled_bias_gelu(product, self.dense.bias)
        return bias_gelu(native, product, self.dense.bias)


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another class, in place; its parameters and their names stay."""
    module.__class__ = kind
    if issubclass(kind, _FusedAddNorm):
        norm = module.get_submodule("LayerNorm")
        if type(norm) is nn.LayerNorm:
            norm.__class__ = FusedLayerNorm


def _forward_of_layer(layer: BertLayer, *args: Any, **kwargs: Any) -> Tensor:
    """A function of its own, so that dynamo counts its compilations apart from all others."""
    output: Tensor = BertLayer.forward(layer, *args, **kwargs)
    return output


class CompiledLayer(BertLayer):  # type: ignore[misc]
    """A layer by torch.compile; layers of one shape share one compilation.

    Where something listens to a module inside of it the layer runs as it is: dynamo does not look
    at hooks, and would give this layer the graph of another that has none. Hooks on the layer
    itself, and gradient checkpointing, are outside of what is compiled.
    """

    _compiled = staticmethod(torch.compile(_forward_of_layer, dynamic=False))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what `BertLayer` does, [batch, length, hidden]."""
        if any(_is_listened_to(module) for module in self.modules() if module is not self):
            tell("compile: something listens to modules inside of a layer: it is not compiled")
            return _forward_of_layer(self, *args, **kwargs)
        output: Tensor = self._compiled(self, *args, **kwargs)
        return output


class ReplayedLayer(CompiledLayer):
    """A compiled layer that is replayed as a CUDA graph."""

    _compiled = staticmethod(
        torch.compile(_forward_of_layer, dynamic=False, mode="reduce-overhead")
    )
