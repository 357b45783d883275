"""The graphs of an edge folder: which files they are, how they are made, and how they run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lert_ds.edge.folder import GRAPHS, OPENVINO_GRAPHS, GraphName
from lert_ds.errors import ConfigError
from prune.export.check import Inputs, Outputs, Run
from prune.export.export_config import ExportConfig, Format

FILES: dict[Format, dict[GraphName, str]] = {"onnx": GRAPHS, "openvino": OPENVINO_GRAPHS}
"""Format and name of a graph to its file."""
_EXTRAS = {
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "onnxscript"), "export"),
    **dict.fromkeys(("openvino", "nncf"), "openvino"),
}
"""What a format needs, and the extra of this package that brings it."""


def write_graphs(model: Any, settings: ExportConfig, folder: Path) -> dict[GraphName, str]:
    """Write the graphs of `model` into an edge folder and return their files.

    Args:
        model: As `export_source.load_model` returns it.
        settings: Of the export.
        folder: To write into.

    Raises:
        ConfigError: what writes the format is not installed.
    """
    files = FILES[settings.format]
    written = {name: files[name] for name in files if name == "fp32" or settings.int8}
    places = {name: folder / file for name, file in written.items()}
    for place in places.values():
        place.parent.mkdir(exist_ok=True)
    with told_when_missing(settings.format):
        if settings.format == "onnx":
            _write_onnx(model, settings, places)
        else:
            _write_openvino(model, settings, places)
    return written


def open_graph(folder: Path, format_: Format, name: GraphName) -> Run:
    """Return what runs a graph of an edge folder, on as many threads as PyTorch."""
    threads = torch.get_num_threads()
    graph: Any
    if format_ == "onnx":
        from lert_ds.edge.edge_model import EdgeModel

        graph = EdgeModel(folder, name, threads)
    else:
        from prune.export.openvino_graph import OpenVinoGraph

        graph = OpenVinoGraph(folder / FILES[format_][name], threads)

    def run(inputs: Inputs) -> Outputs:
        found: Outputs = graph.run({key: tensor.numpy() for key, tensor in inputs.items()})
        return found

    return run


def size_of(path: Path) -> int:
    """Return the bytes of a graph and its weights."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


@contextlib.contextmanager
def told_when_missing(format_: Format) -> Iterator[None]:
    """Turn the failed import of a library that a format needs into a sentence.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise ConfigError(
            f"format = {format_}: {error.name} is not installed; say pip install "
            f"'lert-ds[{_EXTRAS[error.name]}]'"
        ) from error


def _write_onnx(model: Any, settings: ExportConfig, places: dict[GraphName, Path]) -> None:
    from prune.export import onnx_graph

    program = onnx_graph.to_onnx(
        model,
        masked_positions=settings.masked_positions,
        opset=settings.opset,
        fuse=settings.fuse,
    )
    onnx_graph.save(program, places["fp32"])
    if settings.int8:
        int8 = onnx_graph.quantize(program, reduce_range=settings.reduce_range)
        onnx_graph.save(int8, places["int8"])


def _write_openvino(model: Any, settings: ExportConfig, places: dict[GraphName, Path]) -> None:
    from prune.export import openvino_graph

    program = openvino_graph.to_openvino(model, masked_positions=settings.masked_positions)
    openvino_graph.save(program, places["fp32"])
    if settings.int8:
        openvino_graph.save(openvino_graph.quantize(program), places["int8"])
