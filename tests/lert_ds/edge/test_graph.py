"""One graph and ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lert_ds.edge.folder import GRAPHS
from lert_ds.edge.graph import Graph
from lert_ds.errors import ModelError


def test_runs_and_says_what_it_takes(tmp_path: Path, write_edge: Any, edge_tables: Any) -> None:
    folder = write_edge(tmp_path / "edge", masked_positions=True)
    graph = Graph(folder / GRAPHS["fp32"], threads=1)
    assert graph.inputs == ("input_ids", "attention_mask", "masked_positions")
    assert graph.outputs == {"logits": 17, "pos_logits": 3, "ner_logits": 2}
    ids = np.array([[2, 5, 3], [2, 7, 3]])
    given = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}
    found = graph.run({**given, "masked_positions": np.array([1, 5])})
    for name in graph.outputs:
        wanted = edge_tables[name][[5, 3]] * edge_tables["places"][[1, 2]]
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6)


@pytest.mark.parametrize("place", ["../../secret.bin", "{outside}"])
def test_a_graph_reads_no_weights_outside_its_folder(
    tmp_path: Path, write_edge: Any, place: str
) -> None:
    outside = tmp_path / "secret.bin"
    path = write_edge(tmp_path / "edge") / GRAPHS["fp32"]
    model = onnx.load(path)
    table = next(w for w in model.graph.initializer if w.name == "logits.table")
    size = len(table.raw_data)
    outside.write_bytes(bytes(size))
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place.format(outside=outside)), ("length", str(size))):
        table.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="External data path"):
        Graph(path)


def test_what_cannot_be_opened_or_run(tmp_path: Path, write_edge: Any) -> None:
    folder = write_edge(tmp_path / "edge")
    path = folder / GRAPHS["fp32"]
    ids = np.zeros((1, 17), dtype=np.int64)
    graph = Graph(path)
    with pytest.raises(ModelError, match=r"cannot run input_ids \[1, 17\].*max_position_embedd"):
        graph.run({"input_ids": ids, "attention_mask": ids})
    with pytest.raises(ModelError, match="vocab_size"):
        graph.run({"input_ids": ids[:, :2] + 99, "attention_mask": ids[:, :2]})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ModelError, match=r"model\.onnx: ONNX Runtime cannot open it"):
        Graph(path)
