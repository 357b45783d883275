"""What an edge folder looks like, for those who look at one without running it.

edge/
  onnx/model.onnx             fp32
  onnx/model_quantized.onnx   int8 weights
  config.json                 of model type bert: the graph holds the shape, readers need a name
  vocab.txt tokenizer.json tokenizer_config.json
  report.json                 sizes, and how near each graph comes to PyTorch
"""

from pathlib import Path
from typing import Literal

GraphName = Literal["fp32", "int8"]
GRAPHS: dict[GraphName, str] = {"fp32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
"""Name of a graph to its file for ONNX Runtime."""
OPENVINO_GRAPHS: dict[GraphName, str] = {
    "fp32": "openvino/model.xml",
    "int8": "openvino/model_quantized.xml",
}
"""The same for OpenVINO; the weights lie beside it, in .bin."""
CONFIG, REPORT = "config.json", "report.json"
_WEIGHTS = ("*.safetensors", "*.bin")


def is_edge_folder(folder: Path) -> bool:
    """Return whether `folder` is what `lert-ds export` writes: graphs or a report, no weights."""
    files = (*GRAPHS.values(), *OPENVINO_GRAPHS.values())
    graphs = any((folder / file).parent.is_dir() for file in files)
    return (graphs or (folder / REPORT).is_file()) and not any(
        list(folder.glob(pattern)) for pattern in _WEIGHTS
    )
