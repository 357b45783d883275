"""Tables as bytes: what is looked up, and what a decoder multiplies by, against numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from onnx_ir.tape import Tape

from lert_ds.edge.graph import Graph
from prune.export import int8_tables

ROWS, WIDTH = 50, 64


def make_program(table: np.ndarray) -> onnx_ir.Model:
    """A look-up in `table`, and a product with it."""
    ids = onnx_ir.Value(name="ids", type=onnx_ir.TensorType(onnx_ir.DataType.INT64))
    ids.shape = onnx_ir.Shape(["b", "l"])
    hidden = onnx_ir.Value(name="hidden", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    hidden.shape = onnx_ir.Shape(["m", table.shape[1]])
    weights = onnx_ir.Value(name="table", const_value=onnx_ir.tensor(table))
    tape = Tape()
    found = tape.op("Gather", [weights, ids], {"axis": 0})
    found = tape.op("Identity", [found], name="end")
    logits = tape.op("Gemm", [hidden, weights], {"transB": 1})
    outputs: list[tuple[onnx_ir.Value, str, list[Any]]] = [
        (found, "found", ["b", "l", table.shape[1]]),
        (logits, "logits", ["m", len(table)]),
    ]
    for value, name, shape in outputs:
        value.name, value.shape = name, onnx_ir.Shape(shape)
        value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    gather = tape.nodes[0].outputs[0]
    gather.shape, gather.type = onnx_ir.Shape(["b", "l", table.shape[1]]), found.type
    graph = onnx_ir.Graph(
        [ids, hidden],
        [found, logits],
        nodes=list(tape.nodes),
        initializers=[weights],
        opset_imports={"": 17},
    )
    return onnx_ir.Model(graph, ir_version=10)


def run(program: onnx_ir.Model, folder: Path, **inputs: Any) -> dict[str, np.ndarray]:
    onnx_ir.save(program, folder / "graph.onnx")
    return Graph(folder / "graph.onnx", 1).run(inputs)


@pytest.fixture
def table() -> np.ndarray:
    table = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    table[:, ::9] *= 10  # columns far out, and rows of one sign, of nothing
    table[3], table[4] = np.abs(table[3]), 0
    return table


def test_both_uses_share_the_bytes_and_come_near(table: np.ndarray, tmp_path: Path) -> None:
    program = make_program(table)
    int8_tables.pack(program.graph)
    values = program.graph.initializers.items()
    kept = {name: value.const_value.numpy() for name, value in values if value.const_value}
    shapes = {name: (str(array.dtype), array.shape) for name, array in kept.items()}
    assert shapes == {
        "table.bytes": ("uint8", (ROWS, 2, 32)),
        "table.zeros": ("uint8", (ROWS, 2, 1)),
        "table.scales": ("float32", (ROWS, 2, 1)),
    }
    ids = np.arange(ROWS).reshape(2, -1)
    hidden = np.eye(WIDTH, dtype=np.float32)[:40]
    outputs = run(program, tmp_path, ids=ids, hidden=hidden)
    restored = outputs["found"].reshape(ROWS, WIDTH)
    step = (np.ptp(table.reshape(ROWS, 2, 32), axis=-1) / 255).repeat(32, -1)
    step[3] = (
        table[3].reshape(2, 32).max(-1).repeat(32) / 255
    )  # down to 0, which is no number of it
    assert (np.abs(restored - table) <= 0.501 * step + 1e-7).all()
    assert not restored[4].any()
    np.testing.assert_allclose(outputs["logits"], restored[:, :40].T, rtol=1e-6)


def test_a_table_of_few_rows_stays(table: np.ndarray) -> None:
    program = make_program(table[:2])
    int8_tables.pack(program.graph)
    assert list(program.graph.initializers) == ["table"]
