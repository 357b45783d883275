"""LayerNorm in other operators, against PyTorch's."""

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from onnx_ir.tape import Tape

from lert_ds.edge.graph import Graph
from prune.export.fast_norms import use_fast_norms

WIDTH = 48


@pytest.mark.parametrize("kind", ["LayerNormalization", "SkipLayerNormalization", "with bias"])
@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_equals_layer_norm(kind: str, epsilon: float | None, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, own = torch.randn(3, WIDTH, generator=generator)
    values, other = 5 + torch.randn(2, 3, 7, WIDTH, generator=generator)
    fp32 = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    shape = onnx_ir.Shape(["batch", "length", WIDTH])
    inputs = [onnx_ir.Value(name=name, type=fp32, shape=shape) for name in ("values", "other")]
    constants = {
        name: onnx_ir.Value(name=name, const_value=onnx_ir.tensor(tensor.numpy()))
        for name, tensor in (("weight", weight), ("bias", bias), ("own", own))
    }
    skips = kind != "LayerNormalization"
    given = [*inputs[: 1 + skips], constants["weight"], constants["bias"]]
    summed = values + other if skips else values
    if kind == "with bias":
        given.append(constants["own"])
        summed = summed + own
    tape = Tape()
    output = tape.op(
        "SkipLayerNormalization" if skips else kind,
        given,
        {} if epsilon is None else {"epsilon": epsilon},
        domain="com.microsoft" if skips else "",
    )
    output.shape, output.type, output.name = shape, fp32, "normal"
    graph = onnx_ir.Graph(
        inputs,
        [output],
        nodes=list(tape.nodes),
        initializers=list(constants.values()),
        opset_imports={"": 17, "com.microsoft": 1},
    )
    use_fast_norms(graph)
    assert {"InstanceNormalization"} == {n.op_type for n in graph if "Norm" in n.op_type}
    graph.outputs[0].name = "normal"
    onnx_ir.save(onnx_ir.Model(graph, ir_version=10), tmp_path / "graph.onnx")
    arrays = {"values": values.numpy(), "other": other.numpy()}
    found = Graph(tmp_path / "graph.onnx", 1).run(arrays)["normal"]
    wanted = torch.nn.functional.layer_norm(
        summed, (WIDTH,), weight, bias, 1e-5 if epsilon is None else epsilon
    )
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
