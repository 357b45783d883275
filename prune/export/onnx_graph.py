"""A LERT as an ONNX graph, in fp32 and int8, by the exporters of transformers.

Any shape of `LertConfig`: layers of different sizes, without heads, without neurons. Batch, length
and number of masked positions stay open, under the names of `exporters.AXES`.
"""

import re
from pathlib import Path

import onnx_ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from transformers import PreTrainedModel
from transformers.exporters import (
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
)
from transformers.exporters.configs import ExportFormat

from prune.export import exporters
from prune.export.exporters import AXES


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
    inputs = exporters.sample_inputs(model, masked_positions=masked_positions)
    settings = OnnxConfig(
        dynamic=True,
        dynamic_shapes=exporters.dynamic_shapes(model, inputs),
        opset_version=opset,
        ort_fusions="cpu" if fuse else None,
    )
    with exporters.quiet():
        program: onnx_ir.Model = OnnxExporter().export(model, inputs, config=settings).program
    ClearMetadataAndDocStringPass()(program)  # the places in our source that each node comes from
    _name_axes(program)
    for output in program.graph.outputs:
        assert output.name is not None
        output.name = exporters.output_name(output.name)
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
    with exporters.quiet():
        quantized: onnx_ir.Model = quantizer.quantize(own, {}, ExportFormat.ONNX)
    return quantized


def save(program: onnx_ir.Model, path: Path) -> None:
    """Write a graph and its weights as one file."""
    onnx_ir.save(program, path)


def _name_axes(program: onnx_ir.Model) -> None:
    """Put the names of `AXES` in the place of those that tracing made up."""
    graph = program.graph
    names: dict[str, str] = {}
    for value in graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        for dimension, name in zip(value.shape, AXES[value.name], strict=True):
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
