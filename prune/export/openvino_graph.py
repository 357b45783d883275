"""A LERT as an OpenVINO graph, in fp32 and with int8 weights, by the exporters of transformers.

Any shape of `LertConfig`; batch, length and number of masked positions stay open. For servers of
Intel and AMD: there it is faster on long texts than ONNX Runtime, which runs on more devices.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.exporters import (
    NNCFOpenVINOQuantizer,
    NNCFWeightCompressionConfig,
    OpenVINOConfig,
    OpenVINOExporter,
)
from transformers.exporters.configs import ExportFormat

from prune.export import exporters


def to_openvino(model: PreTrainedModel, *, masked_positions: bool = False) -> openvino.Model:
    """Return the fp32 graph of `model`.

    Args:
        model: Of a class of `lert_ds.modeling_lert`, in evaluation mode, on the CPU.
        masked_positions: Whether `LertForPreTraining.forward`'s argument is an input of the graph.
    """
    inputs = exporters.sample_inputs(model, masked_positions=masked_positions)
    settings = OpenVINOConfig(
        dynamic=True, dynamic_shapes=exporters.dynamic_shapes(model, inputs), stateful=False
    )
    with exporters.quiet():
        program = OpenVINOExporter().export(model, inputs, config=settings).program
    for output in program.outputs:
        output.get_tensor().set_names({exporters.output_name(output.any_name)})
    return program


def quantize(program: openvino.Model) -> openvino.Model:
    """Return a copy of `program` with int8 weights, a scale and a zero a channel."""
    settings = NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_ASYM)
    with exporters.quiet():
        return NNCFOpenVINOQuantizer(settings).quantize(program.clone(), {}, ExportFormat.OPENVINO)


def save(program: openvino.Model, path: Path) -> None:
    """Write a graph, `path`, and beside it its weights, of the same name with `.bin`."""
    openvino.save_model(program, path, compress_to_fp16=False)


class OpenVinoGraph:
    """A graph of an edge folder, on the CPU, in fp32 (left to itself it would compute in bf16)."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open the graph at `path`; an operator may use `threads`."""
        core = openvino.Core()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        self.inputs = tuple(entry.any_name for entry in self._compiled.inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs of the graph by name; of `inputs` it gets those that it takes."""
        found = self._compiled({name: inputs[name] for name in self.inputs})
        return {output.any_name: found[output].copy() for output in self._compiled.outputs}
