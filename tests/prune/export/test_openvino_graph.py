"""OpenVINO's graphs equal PyTorch's model; the library is optional."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.edge.folder import OPENVINO_GRAPHS, REPORT, is_edge_folder
from prune.export.export_config import ExportConfig

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'lert-ds[openvino]'")
pytest.importorskip("nncf", reason="nncf is not installed: pip install 'lert-ds[openvino]'")

from prune.export.openvino_graph import OpenVinoGraph
from prune.export.run import export


def test_an_edge_folder_equals_pytorch(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(map(chr, range(0x4E00, 0x4E28))) * 5, "utf-8")
    tree = {
        "model": str(tiny_model),
        "output": str(tmp_path / "edge"),
        "format": "openvino",
        "masked_positions": True,
        "text": str(text),
        "accuracy": {"corpus": str(tiny_corpus), "instances": 8, "largest_drop": 0.2},
    }
    report = export(parse(ExportConfig, tree, "test"))
    folder = tmp_path / "edge"
    assert is_edge_folder(folder)
    assert list(report["files"]) == list(OPENVINO_GRAPHS.values())
    assert json.loads((folder / REPORT).read_text("utf-8")) == report
    sizes = [facts["bytes"] for facts in report["files"].values()]
    assert sizes[0] == sum(
        (folder / f"openvino/model.{end}").stat().st_size for end in ("xml", "bin")
    )
    model, _ = model_dir.load(tiny_model)
    generator = torch.Generator().manual_seed(0)
    graphs = {
        name: OpenVinoGraph(folder / file, threads=1) for name, file in OPENVINO_GRAPHS.items()
    }
    for batch, length in ((1, 1), (1, 40), (8, 1), (8, 40), (3, 17)):
        lengths = torch.randint(1, length + 1, (batch,), generator=generator)
        real = torch.arange(length) < lengths[:, None]
        given = {
            "input_ids": torch.randint(0, 45, (batch, length), generator=generator),
            "attention_mask": real.long(),
            "token_type_ids": torch.zeros(batch, length, dtype=torch.int64),
            "masked_positions": real.flatten().nonzero()[:, 0],
        }
        with torch.inference_mode():
            wanted = model.eval()(**given)
        for name, most in (("fp32", 1e-4), ("int8", 0.2)):
            found = graphs[name].run({key: tensor.numpy() for key, tensor in given.items()})
            assert set(found) == {"logits", "pos_logits", "dep_logits"}
            tags = {f"{task}_logits": logits for task, logits in wanted.tag_logits.items()}
            for output, logits in {"logits": wanted.logits, **tags}.items():
                error = np.sqrt(np.square(found[output] - logits.numpy()).mean())
                assert error < most * logits.std(), (name, output, batch, length)
