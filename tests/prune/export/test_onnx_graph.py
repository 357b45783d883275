"""The graphs: axes, names, what is quantized, and what no machine but ours should see."""

import contextlib
import io
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch

from lert_ds.configuration_lert import LertConfig
from lert_ds.edge.graph import Graph
from lert_ds.modeling_lert import LertForPreTraining
from prune.export import onnx_graph

# As large as the tables of real models, which the exporters treat in another way than small ones.
PIECES = 9000
SHAPE = LertConfig(
    vocab_size=PIECES,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=24,
    tag_sets={"pos": ["n", "v", "a"]},
)


@pytest.fixture(scope="module", params=[(False, True), (True, False)], ids=["fused", "standard"])
def program(request: pytest.FixtureRequest) -> onnx_ir.Model:
    masked_positions, fuse = request.param
    torch.manual_seed(0)
    model = LertForPreTraining(SHAPE).eval()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(logging.Logger, "handle", lambda _, record: printed.write(record.msg))
        made = onnx_graph.to_onnx(model, masked_positions=masked_positions, fuse=fuse, opset=19)
    assert printed.getvalue() == ""
    return made


def matrices(program: onnx_ir.Model) -> list[onnx_ir.Value]:
    values = program.graph.initializers.values()
    return [v for v in values if v.const_value is not None and len(v.const_value.shape) == 2]


def test_axes_and_outputs_have_names(program: onnx_ir.Model) -> None:
    inputs = {value.name: [str(size) for size in value.shape] for value in program.graph.inputs}
    text = ["batch_size", "sequence_length"]
    masked = {"masked_positions": ["masked_count"]} if "masked_positions" in inputs else {}
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert inputs == {**dict.fromkeys(names, text), **masked}
    rows = ["masked_count"] if masked else text
    outputs = {value.name: [str(size) for size in value.shape] for value in program.graph.outputs}
    assert outputs == {"logits": [*rows, str(PIECES)], "pos_logits": [*rows, "3"]}
    assert program.opset_imports[""] == 19


def test_fuses_as_asked(program: onnx_ir.Model) -> None:
    own = {node.op_type for node in program.graph.all_nodes() if node.domain == "com.microsoft"}
    assert bool(own) == ("masked_positions" not in {value.name for value in program.graph.inputs})


def test_the_table_of_words_is_kept_once_in_fp32(program: onnx_ir.Model) -> None:
    assert sum(PIECES in value.const_value.shape for value in matrices(program)) == 1


def shapes_of(program: onnx_ir.Model, kind: onnx_ir.DataType, rank: int) -> list[tuple[int, ...]]:
    values = [value.const_value for value in program.graph.initializers.values()]
    shapes = [tuple(value.numpy().shape) for value in values if value and value.dtype == kind]
    return sorted(shape for shape in shapes if len(shape) == rank)


def test_what_runs_at_every_position_becomes_int8(program: onnx_ir.Model) -> None:
    before = Counter(node.op_type for node in program.graph.all_nodes())
    few = "masked_positions" in {value.name for value in program.graph.inputs}
    quantized = onnx_graph.quantize(program)
    segments, transform, tags = (2, 32), (32, 32), (32, 3)
    heads = [transform, tags] if few else []
    fp32 = shapes_of(quantized, onnx_ir.DataType.FLOAT, 2)
    assert fp32 == sorted([segments, *heads])
    # The words and the positions; the words once more where every position is scored.
    assert shapes_of(quantized, onnx_ir.DataType.UINT8, 3) == [
        *((size, 1, part) for size in (24, PIECES) for part in (1, 32))
    ]
    int8 = shapes_of(quantized, onnx_ir.DataType.INT8, 2)
    assert sum(PIECES in shape for shape in int8) == (not few)
    counts = Counter(node.op_type for node in quantized.graph.all_nodes())
    # Two of the feed-forward, attention's in and out, packed or not; decoder, transform and tags.
    assert counts["MatMulInteger"] == len(int8) == (6 if few else 7)
    assert not counts["Gemm"] + counts["FusedMatMul"]
    # Of activations: scores and their sum over values; and the heads.
    assert counts["MatMul"] == (5 if few else 2)
    assert counts["InstanceNormalization"] == (3 if few else 4)
    assert counts["LayerNormalization"] + counts["SkipLayerNormalization"] == few
    assert Counter(node.op_type for node in program.graph.all_nodes()) == before
    zeros = [
        value.const_value.numpy()
        for name, value in quantized.graph.initializers.items()
        if name.endswith("_zero_point") and value.const_value.dtype == onnx_ir.DataType.INT8
    ]
    assert zeros
    assert all(points.size > 1 and points.any() for points in zeros)  # a channel each, no symmetry


def test_weights_of_seven_bits(program: onnx_ir.Model) -> None:
    def reach(reduce_range: bool) -> int:
        made = onnx_graph.quantize(program, reduce_range=reduce_range)
        values = [v.const_value.numpy() for v in matrices(made)]
        return max(int(v.max()) - int(v.min()) for v in values if v.dtype == np.int8)

    assert reach(False) > 200
    assert reach(True) < 130


def test_one_file_that_says_nothing_of_this_machine(program: onnx_ir.Model, tmp_path: Path) -> None:
    onnx_graph.save(program, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for trace in (str(Path(__file__).parents[3]), "modeling_lert", "stack_trace"):
        assert trace.encode() not in content


CORNERS = [(1, 1), (1, 512), (8, 1), (8, 512), (2, 2), (3, 511)]


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[LertForPreTraining, dict[str, Graph]]:
    """A model with a layer without heads and one without neurons, and its graphs."""
    shape = LertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        layer_attention_heads=[3, 0, 1],
        layer_intermediate_sizes=[40, 16, 0],
        max_position_embeddings=512,
        tag_sets={"pos": ["n", "v", "a"]},
    )
    torch.manual_seed(0)
    model = LertForPreTraining(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # wide apart, so that a wrong answer shows
            parameter.add_(0.2 * torch.randn_like(parameter))
    program = onnx_graph.to_onnx(model, masked_positions=True)
    graphs = {}
    for name, made in (("fp32", program), ("int8", onnx_graph.quantize(program))):
        path = tmp_path / f"{name}.onnx"
        onnx_graph.save(made, path)
        graphs[name] = Graph(path, threads=1)
    return model, graphs


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - wanted).mean()) / wanted.std())


def test_equals_pytorch_at_any_length_and_batch(
    uneven: tuple[LertForPreTraining, dict[str, Graph]],
) -> None:
    model, graphs = uneven
    generator = torch.Generator().manual_seed(1)

    def draw(most: int, *size: int) -> torch.Tensor:
        return torch.randint(0, most, size, generator=generator)

    # Lengths drawn evenly by their logarithm, so that short ones come too.
    drawn = [
        (1 + int(draw(8, 1)), round(512 ** float(torch.rand(1, generator=generator))))
        for _ in range(18)
    ]
    for batch, length in CORNERS + drawn:
        lengths = 1 + draw(length, batch)
        lengths[0] = length
        real = torch.arange(length) < lengths[:, None]
        given = {
            "input_ids": draw(50, batch, length),
            "attention_mask": real.long(),
            "token_type_ids": draw(2, batch, length),
            "masked_positions": real.flatten().nonzero()[:, 0],  # all that is not padding
        }
        with torch.inference_mode():
            output = model(**given)
        wanted = {"logits": output.logits, "pos_logits": output.tag_logits["pos"]}
        arrays = {name: tensor.numpy() for name, tensor in given.items()}
        for graph, most in (("fp32", 1e-4), ("int8", 0.2)):
            found = graphs[graph].run(arrays)
            assert found.keys() == wanted.keys()
            for name, logits in wanted.items():
                assert found[name].shape == logits.shape
                error = relative_error(found[name], logits.numpy())
                assert error < most, (graph, name, batch, length, error)


@pytest.mark.parametrize("graph", ["fp32", "int8"])
def test_nothing_masked_is_nothing_scored(
    uneven: tuple[LertForPreTraining, dict[str, Graph]], graph: str
) -> None:
    texts = np.ones((2, 5), np.int64)
    inputs = {"input_ids": texts, "attention_mask": texts, "token_type_ids": 0 * texts}
    found = uneven[1][graph].run({**inputs, "masked_positions": np.zeros(0, np.int64)})
    assert {name: logits.shape for name, logits in found.items()} == {
        "logits": (0, 50),
        "pos_logits": (0, 3),
    }
