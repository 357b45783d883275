"""A LERT as an ONNX graph, in fp32 and int8, by the exporters of transformers.

Any shape of `LertConfig`: layers of different sizes, without heads, without neurons. Batch, length
and number of masked positions stay open; their names in the graph are those of `_AXES`.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor
from transformers import PreTrainedModel
from transformers.exporters import (
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
)
from transformers.exporters.configs import ExportFormat
from transformers.utils import logging as transformers_logging

_AXES = {
    "input_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", "sequence_length"),
    "token_type_ids": ("batch_size", "sequence_length"),
    "masked_positions": ("masked_count",),
}
_TAG_LOGITS = "tag_logits."


def to_onnx(
    model: PreTrainedModel, *, masked_positions: bool = False, opset: int = 20, fuse: bool = True
) -> onnx_ir.Model:
    """Return the fp32 graph of `model`.

    Args:
        model: Of a class of `lert_ds.modeling_lert`, in evaluation mode, on the CPU.
        masked_positions: Whether `LertForPreTraining.forward`'s argument is an input of the graph.
        opset: Version of ONNX's operators.
        fuse: Put ONNX Runtime's own operators in the place of groups of standard ones.
    """
    inputs = _sample_inputs(model, masked_positions)
    sizes = {
        "batch_size": torch.export.Dim("batch_size"),
        "sequence_length": torch.export.Dim(
            "sequence_length", max=model.config.max_position_embeddings
        ),
        "masked_count": torch.export.Dim("masked_count"),
    }
    settings = OnnxConfig(
        dynamic=True,
        dynamic_shapes={
            name: {axis: sizes[size] for axis, size in enumerate(_AXES[name])} for name in inputs
        },
        opset_version=opset,
        ort_fusions="cpu" if fuse else None,
    )
    with _quiet():
        program: onnx_ir.Model = OnnxExporter().export(model, inputs, config=settings).program
    ClearMetadataAndDocStringPass()(program)  # the places in our source that each node comes from
    _name_axes(program)
    for output in program.graph.outputs:
        assert output.name is not None
        if output.name.startswith(_TAG_LOGITS):
            output.name = f"{output.name.removeprefix(_TAG_LOGITS)}_logits"
    return program


def quantize(program: onnx_ir.Model, *, reduce_range: bool = False) -> onnx_ir.Model:
    """Return `program` with int8 weights, one scale a channel; `program` stays as it is.

    The weights' range need not be symmetric about 0: on a trained model the logits' error is then a
    third smaller than with ONNX Runtime's default, at the same speed.

    Args:
        program: An fp32 graph.
        reduce_range: Weights of 7 bits, for x86 processors without VNNI.
    """
    own = program.clone()
    _make_quantizable(own)
    quantizer = OnnxRuntimeQuantizer(
        OnnxRuntimeDynamicConfig(
            per_channel=True,
            reduce_range=reduce_range,
            extra_options={"WeightSymmetric": False},
        )
    )
    with _quiet():
        quantized: onnx_ir.Model = quantizer.quantize(own, {}, ExportFormat.ONNX)
    return quantized


def save(program: onnx_ir.Model, path: Path) -> None:
    """Write a graph and its weights as one file."""
    onnx_ir.save(program, path)


def _sample_inputs(model: PreTrainedModel, masked_positions: bool) -> dict[str, Tensor]:
    """Return two texts, one of them padded: tracing sees that a mask does something."""
    length = max(min(16, model.config.max_position_embeddings - 1), 2)
    ids = torch.ones(2, length, dtype=torch.int64)
    real = torch.ones_like(ids)
    real[1, length // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": real, "token_type_ids": torch.zeros_like(ids)}
    if masked_positions:
        inputs["masked_positions"] = torch.tensor([0, 1, length])
    return inputs


def _name_axes(program: onnx_ir.Model) -> None:
    """Put the names of `_AXES` in the place of those that tracing made up."""
    graph = program.graph
    names: dict[str, str] = {}
    for value in graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        for dimension, name in zip(value.shape, _AXES[value.name], strict=True):
            names[str(dimension)] = name
    produced = [output for node in graph.all_nodes() for output in node.outputs]
    for value in [*graph.inputs, *produced]:
        if value.shape is None:
            continue
        value.shape = onnx_ir.Shape(
            [
                dimension
                if isinstance(dimension, int)
                else re.sub(r"\w+", lambda match: names.get(match[0], match[0]), str(dimension))
                for dimension in value.shape
            ]
        )


def _make_quantizable(program: onnx_ir.Model) -> None:
    """Give each multiplication a matrix of its own, as quantizing asks for.

    A matrix behind a Transpose or inside a FusedMatMul stays fp32. So would the decoder's, which is
    the table of word embeddings: the slowest part of an int8 masked language model.
    """
    graph = program.graph
    for table in list(graph.initializers.values()):
        uses = list(table.uses())
        for node, place in uses:
            if node.op_type == "Transpose":
                own = _own_copy(graph, table, node, transposed=True)
                node.outputs[0].replace_all_uses_with(own)
                graph.remove(node, safe=True)
            elif node.op_type == "FusedMatMul" and place == 1:
                # Nothing else of it than transB is ever set for a linear layer.
                assert set(node.attributes) == {"transB"}, node
                own = _own_copy(graph, table, node, transposed=True)
                product = onnx_ir.node("MatMul", [node.inputs[0], own], name=node.name)
                graph.insert_before(node, product)
                product.outputs[0].name = f"{node.outputs[0].name}.plain"
                node.outputs[0].replace_all_uses_with(product.outputs[0])
                graph.remove(node, safe=True)
            elif node.op_type == "Gemm" and len(uses) > 1:
                node.replace_input_with(place, _own_copy(graph, table, node, transposed=False))


def _own_copy(
    graph: onnx_ir.Graph, table: onnx_ir.Value, node: onnx_ir.Node, *, transposed: bool
) -> onnx_ir.Value:
    """Return a copy of `table` for `node` alone."""
    assert table.const_value is not None
    weights = table.const_value.numpy()
    own = onnx_ir.Value(
        name=f"{table.name}.{node.name}",
        const_value=onnx_ir.tensor((weights.T if transposed else weights).copy("C")),
    )
    graph.register_initializer(own)
    return own


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the steps and warnings of the exporters: nothing in them is the user's to mend.

    They say that versions differ from those the exporters were tested with, and that torchvision is
    missing; what comes out is compared with PyTorch.
    """
    verbosity = transformers_logging.get_verbosity()
    disabled = logging.root.manager.disable
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)
