"""Processes of `edge.py` that run a model as `lert-ds benchmark` does not: other runtimes.

    python benchmarks/edge_worker.py '{"runtime": "stock", "path": "runs/small/model"}'

stock       transformers' BertForMaskedLM in PyTorch, logits of every position: as anyone calls it
openvino    an .xml file; "precision": "f32", or null for what it chooses itself
executorch  a folder of .pte files, one a length
"""

import json
import sys
from pathlib import Path
from typing import Any

from prune.benchmark.worker import Opener, serve


def stock(path: str, precision: str | None) -> Opener:
    import torch
    from transformers import BertForMaskedLM

    assert precision is None
    model = BertForMaskedLM.from_pretrained(path).eval()

    def open_model(threads: int) -> Any:
        torch.set_num_threads(threads)

        @torch.inference_mode()
        def run(inputs: Any) -> Any:
            names = ("input_ids", "attention_mask", "token_type_ids")
            return {"logits": model(**{n: torch.from_numpy(inputs[n]) for n in names})[0].numpy()}

        return run

    return open_model


def openvino(path: str, precision: str | None) -> Opener:
    import openvino

    core = openvino.Core()

    def open_model(threads: int) -> Any:
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        names = [entry.any_name for entry in compiled.inputs]
        request = compiled.create_infer_request()

        def run(inputs: Any) -> Any:
            found = request.infer({name: inputs[name] for name in names}, share_outputs=True)
            return {"logits": found["logits"].copy()}

        return run

    return open_model


def executorch(path: str, precision: str | None) -> Opener:
    import torch
    from executorch.runtime import Runtime

    assert precision is None

    def open_model(threads: int) -> Any:
        torch.set_num_threads(threads)  # XNNPACK's own pool follows the cores that may be used
        methods: dict[int, Any] = {}

        def run(inputs: Any) -> Any:
            length = inputs["input_ids"].shape[1]
            if length not in methods:
                program = Runtime.get().load_program(Path(path) / f"{length}.pte")
                methods[length] = program, program.load_method("forward")
            names = ("input_ids", "token_type_ids", "masked_positions")
            found = methods[length][1].execute([torch.from_numpy(inputs[name]) for name in names])
            return {"logits": found[0].numpy().copy()}

        return run

    return open_model


RUNTIMES = {"stock": stock, "openvino": openvino, "executorch": executorch}


if __name__ == "__main__":
    wish = json.loads(sys.argv[1])
    serve(RUNTIMES[wish["runtime"]](wish["path"], wish.get("precision")))
