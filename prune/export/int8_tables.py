"""Tables of embeddings as bytes, in a graph of ONNX's standard operators.

    row of 256 numbers  =  8 blocks of 32 bytes, each with a scale (fp32) and a zero (byte)
    number = (byte - zero) * scale

A look-up restores the rows that it takes. What multiplies by the whole table, a decoder, has it
restored when the graph is opened: that is a constant, which ONNX Runtime folds. So the bytes lie in
the file once for both, and the decoder's sums are of fp32.

One scale a table, ONNX Runtime's own way, makes two to three times the error in the logits.
"""

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from prune.export.blocks import blocks_of

_FEWEST_ROWS = 16
"""Of fewer (the two segments) a table is smaller than the nodes that would restore it."""


def pack(graph: onnx_ir.Graph) -> None:
    """Put bytes in the place of every fp32 table that something is looked up in."""
    for table in list(graph.initializers.values()):
        uses = list(table.uses())
        if any(_looks_up(node, place) for node, place in uses) and _rows(table) >= _FEWEST_ROWS:
            _pack(graph, table)


def _looks_up(node: onnx_ir.Node, place: int) -> bool:
    return node.op_type == "Gather" and place == 0


def _rows(table: onnx_ir.Value) -> int:
    value = table.const_value
    assert value is not None
    is_table = value.dtype == onnx_ir.DataType.FLOAT and len(value.shape) == 2
    return int(value.numpy().shape[0]) if is_table else 0


def _pack(graph: onnx_ir.Graph, table: onnx_ir.Value) -> None:
    assert table.const_value is not None
    weights = table.const_value.numpy()
    parts = []
    arrays = dict(zip(("bytes", "zeros", "scales"), _to_bytes(weights), strict=True))
    for name, array in arrays.items():
        part = onnx_ir.Value(name=f"{table.name}.{name}", const_value=onnx_ir.tensor(array))
        graph.register_initializer(part)
        parts.append(part)
    for node, place in list(table.uses()):
        tape = Tape(graph)
        if _looks_up(node, place):
            found = node.outputs[0]
            assert found.shape is not None
            rows = [tape.op("Gather", [part, node.inputs[1]], {"axis": 0}) for part in parts]
            # Reshape's 0 keeps an axis: that of the text, that of the position.
            restored = _restore(tape, rows, [0] * (found.shape.rank() - 1) + [weights.shape[1]])
            restored.shape, restored.type = found.shape, found.type
            found.replace_all_uses_with(restored)
            graph.insert_before(node, tape.nodes)
            graph.remove(node, safe=True)
        else:
            node.replace_input_with(place, _restore(tape, parts, list(weights.shape)))
            graph.insert_before(node, tape.nodes)
    del graph.initializers[table.name or ""]


def _restore(tape: Tape, parts: list[onnx_ir.Value], shape: list[int]) -> onnx_ir.Value:
    """Return bytes, zeros and scales, each [..., blocks, numbers], as fp32 of `shape`."""
    bytes_, zeros, scales = parts
    fp32 = {"to": onnx_ir.DataType.FLOAT}
    above = tape.op("Sub", [tape.op("Cast", [bytes_], fp32), tape.op("Cast", [zeros], fp32)])
    numbers = tape.op("Mul", [above, scales])
    goal = tape.op("Constant", [], {"value_ints": shape})
    return tape.op("Reshape", [numbers, goal])


def _to_bytes(weights: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return bytes [rows, blocks, numbers], and zeros and scales [rows, blocks, 1]."""
    blocks = weights.reshape(len(weights), blocks_of(weights.shape[1]), -1)
    # 0 is always within, so that its place is a byte.
    lowest = np.minimum(blocks.min(-1, keepdims=True), 0)
    highest = np.maximum(blocks.max(-1, keepdims=True), 0)
    scales = (highest - lowest) / np.float32(255)
    scales[scales == 0] = 1
    zeros = np.rint(-lowest / scales)
    levels = np.clip(np.rint(blocks / scales) + zeros, 0, 255)
    return levels.astype(np.uint8), zeros.astype(np.uint8), scales
