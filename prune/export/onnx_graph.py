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

from lert_ds.machine import sums_of_bytes_overflow
from prune.export import exporters, fast_norms, int8_tables
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


def quantize(program: onnx_ir.Model, *, reduce_range: bool | None = None) -> onnx_ir.Model:
    """Return `program` with int8 weights; `program` stays as it is.

    What runs at every position multiplies in int8: a scale and a zero a channel for the weights
    (symmetric ones would err by half as much again), one a call for the activations. Tables of
    embeddings are bytes, see `int8_tables`. Heads that run at few positions (the masked ones; the
    first) stay fp32: they are small, next to nothing of the time, and most of what int8 would err.

    Args:
        program: An fp32 graph.
        reduce_range: Weights of 7 bits, for x86 processors without VNNI; None: where this is one.
    """
    own = program.clone()
    _make_quantizable(own)
    int8_tables.pack(own.graph)
    # Positions picked out of a text are rows of a matrix, for which tracing makes a Gemm. ONNX
    # Runtime makes of that a MatMul, of this name, before it looks at what to leave out.
    heads = [f"{node.name}_MatMul" for node in own.graph if node.op_type == "Gemm"]
    quantizer = OnnxRuntimeQuantizer(
        OnnxRuntimeDynamicConfig(
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=heads,
            per_channel=True,
            reduce_range=sums_of_bytes_overflow() if reduce_range is None else reduce_range,
            extra_options={"WeightSymmetric": False},
        )
    )
    with exporters.quiet():
        quantized: onnx_ir.Model = quantizer.quantize(own, {}, ExportFormat.ONNX)
    fast_norms.use_fast_norms(quantized.graph)
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
    """Give each multiplication at every position a matrix of its own, as quantizing asks for.

    A matrix behind a Transpose or inside a FusedMatMul stays fp32. So would the decoder's, which is
    the table of word embeddings: the slowest part of an int8 graph that scores every position.
    """
    graph = program.graph
    for table in list(graph.initializers.values()):
        for node, place in list(table.uses()):
            if node.op_type == "Transpose":
                own = _transposed_copy(graph, table, node)
                node.outputs[0].replace_all_uses_with(own)
                graph.remove(node, safe=True)
            elif node.op_type == "FusedMatMul" and place == 1:
                # Nothing else of it than transB is ever set for a linear layer.
                assert set(node.attributes) == {"transB"}, node
                own = _transposed_copy(graph, table, node)
                product = onnx_ir.node("MatMul", [node.inputs[0], own], name=node.name)
                graph.insert_before(node, product)
                product.outputs[0].name = f"{node.outputs[0].name}.plain"
                node.outputs[0].replace_all_uses_with(product.outputs[0])
                graph.remove(node, safe=True)


def _transposed_copy(
    graph: onnx_ir.Graph, table: onnx_ir.Value, node: onnx_ir.Node
) -> onnx_ir.Value:
    """Return a copy of `table` for `node` alone."""
    assert table.const_value is not None
    own = onnx_ir.Value(
        name=f"{table.name}.{node.name}",
        const_value=onnx_ir.tensor(table.const_value.numpy().T.copy("C")),
    )
    graph.register_initializer(own)
    return own
