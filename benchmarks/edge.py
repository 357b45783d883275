"""What a masked language model costs on one core, from PyTorch to int8 of a pruned model.

    python benchmarks/edge.py --model runs/small/model --text train.txt --valid valid.txt \
        --output benchmarks/results/edge.json
    python benchmarks/edge.py --vocabulary vocab.txt --text train.txt --valid valid.txt

LERT-small's shape (12 layers of 256, 4 heads, 1,024 neurons) with the weights of --model, or random
ones. Pruned: half of the heads and of the neurons of each layer, by the norms of their weights, and
the vocabulary that --text uses; or what --pruned names. Speed and size do not depend on what the
weights are; the agreement of int8 with fp32 does, so that of random weights says nothing.

Every column is a process on one thread, and they take turns as in `lert-ds benchmark`. The first
column is transformers' own BertForMaskedLM in fp32, which scores every position, as anyone calls
it. Other runtimes are measured where they are installed:

    pip install openvino nncf
    pip install --no-deps executorch torchao
    pip install ruamel.yaml flatbuffers tabulate pandas
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lert_ds import model_dir, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.machine import description
from lert_ds.model_surgery import Cut, cut
from lert_ds.modeling_lert import LertForPreTraining
from prune.benchmark.columns import find_columns
from prune.benchmark.inputs import Text
from prune.benchmark.turns import Cell, measure, summarize, working
from prune.importance.scores import score
from prune.vocabulary.choice import VocabularyConfig, prune_vocabulary

SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
}
WORKER = str(Path(__file__).with_name("edge_worker.py"))
AGREEMENT_LENGTH, AGREEMENT_TEXTS, AGREEMENT_BATCH = 128, 256, 8
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "executorch", "torchao")


@dataclass(frozen=True)
class Column:
    """A model in one runtime."""

    name: str
    weights: str
    """`whole` or `pruned`."""
    folder: Path
    """Of its tokenizer."""
    bytes: int
    scores: str
    command: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="model folder (default: random weights)")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt of a model of random weights")
    parser.add_argument("--pruned", type=Path, help="pruned model folder (default: by norms)")
    parser.add_argument(
        "--text", type=Path, required=True, help="what the vocabulary is counted on"
    )
    parser.add_argument("--valid", type=Path, required=True, help="text that is filled in")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--masked-share", type=float, default=0.15)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--work", type=Path, help="folder to keep the models in")
    parser.add_argument("--output", type=Path, help="JSON to write (default: print)")
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.vocabulary is None):
        parser.error("name --model, or --vocabulary for random weights")
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        record = benchmark(arguments, work)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text, "utf-8")


def benchmark(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    whole = arguments.model or random_model(arguments.vocabulary, work)
    pruned = arguments.pruned or prune_by_norms(whole, arguments.text, work)
    left_out: dict[str, str] = {}
    columns = [
        *columns_of("whole", whole, work, arguments, left_out),
        *columns_of("pruned", pruned, work, arguments, left_out),
    ]
    text = arguments.valid.read_text("utf-8")
    texts = {
        folder: Text(tokenizer_files.load(folder), text)
        for folder in {column.folder for column in columns}
    }
    cells = [Cell(1, 1, length) for length in arguments.lengths]

    def inputs_of(place: int, cell: Cell) -> Any:
        own = texts[columns[place].folder]
        return own.inputs(cell.batch_size, cell.length, arguments.masked_share)

    with working({column.name: column.command for column in columns}) as workers:
        timings = measure(
            workers,
            cells,
            inputs_of,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            tell=lambda done, planned: print(f"{done} of {planned}", file=sys.stderr),
        )
        memory = [worker.ask("peak_memory") for worker in workers]
        agreement = agreements(columns, workers, texts, arguments.masked_share)
    latencies = {cell.length: summarize(cell, found) for cell, found in timings.items()}
    results = [
        {
            "name": column.name,
            "weights": column.weights,
            "scores": column.scores,
            "bytes": column.bytes,
            "bytes_ratio": columns[0].bytes / column.bytes,
            "memory_bytes": memory[place],
            "agreement_with_fp32": agreement[place],
            "latency": {str(length): found[place] for length, found in latencies.items()},
        }
        for place, column in enumerate(columns)
    ]
    for line in table(results, arguments.lengths):
        print(line, file=sys.stderr)
    return {
        "setting": (
            "batch 1, one thread; latency of filling the [MASK]s of real text, "
            f"{arguments.masked_share:.0%} of its pieces; ratios: first column / this one, medians "
            f"of {arguments.rounds} interleaved rounds"
        ),
        "weights": "random" if arguments.model is None else "trained",
        "whole": facts(whole),
        "pruned": {
            "by": "norms" if arguments.pruned is None else "given",
            **facts(pruned),
        },
        "columns": results,
        "left_out": left_out,
        "agreement": (
            f"share of [MASK]s whose best piece is that of PyTorch fp32 with the same weights, "
            f"{AGREEMENT_TEXTS} held-out texts of {AGREEMENT_LENGTH} tokens"
        ),
        "machine": description(PACKAGES),
        "command": "python benchmarks/edge.py " + " ".join(sys.argv[1:]),
    }


def random_model(vocabulary: Path, work: Path) -> Path:
    tokenizer = work / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "vocab.txt").write_bytes(vocabulary.read_bytes())
    torch.manual_seed(0)
    size = len(tokenizer_files.load(tokenizer))
    model = LertForPreTraining(LertConfig(vocab_size=size, **SHAPE))
    model_dir.save(model, tokenizer, work / "whole")
    return work / "whole"


def prune_by_norms(source: Path, text: Path, work: Path) -> Path:
    """Write a model of half the heads and neurons of each layer, and the pieces of `text`."""
    model, _ = model_dir.load(source, LertForPreTraining)
    found = score(model, [], "magnitude")
    pieces = prune_vocabulary(source, VocabularyConfig(input=(text,)), work / "tokens").pieces
    shape = Cut(
        heads=tuple(tuple(best_half(row).tolist()) for row in found.heads),
        neurons=tuple(best_half(row) for row in found.neurons),
        pieces=pieces,
    )
    model_dir.save(cut(model, shape), work / "tokens", work / "pruned")
    return work / "pruned"


def best_half(scores: torch.Tensor) -> torch.Tensor:
    """Return whether each unit is of the better half, bool [units]."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.topk(math.ceil(len(scores) / 2)).indices] = True
    return kept


def columns_of(
    weights: str,
    model: Path,
    work: Path,
    arguments: argparse.Namespace,
    left_out: dict[str, str],
) -> Iterator[Column]:
    """Yield the columns of one model; what cannot be measured goes to `left_out`, with why."""
    (shipped,) = find_columns([str(model)], [], "fp32")
    if weights == "whole":
        wish = {"runtime": "stock", "path": str(model)}
        yield Column(
            f"{weights}: PyTorch fp32, BertForMaskedLM",
            weights,
            model,
            shipped.bytes,
            "every position",
            [WORKER, json.dumps(wish)],
        )
    yield Column(
        f"{weights}: PyTorch fp32", weights, model, shipped.bytes, "the [MASK]s", shipped.command
    )
    for masked, scores in (("false", "every position"), ("true", "the [MASK]s")):
        folder = export(model, work / f"{weights}-{masked}", f"masked_positions={masked}")
        for column in find_columns([str(folder)], [], "fp32"):
            yield Column(
                f"{weights}: ONNX Runtime {column.graph}, {scores}",
                weights,
                model,
                column.bytes,
                scores,
                column.command,
            )
    try:
        yield from openvino_columns(weights, model, work)
    except Exception as error:  # noqa: BLE001 - a candidate, whatever keeps it from running
        left_out[f"{weights}: OpenVINO"] = repr(error)
    try:
        yield from executorch_columns(weights, model, work, arguments)
    except Exception as error:  # noqa: BLE001
        left_out[f"{weights}: ExecuTorch"] = repr(error)


def export(model: Path, output: Path, *more: str) -> Path:
    words = ["export-edge", f"model={model}", f"output={output}", "overwrite=true", *more]
    subprocess.run([sys.executable, "-m", "lert_ds", "export", *words], check=True)
    return output


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"left out: {package} is not installed")


def openvino_columns(weights: str, model: Path, work: Path) -> Iterator[Column]:
    need("openvino", "nncf")
    folder = export(model, work / f"{weights}-openvino", "masked_positions=true", "format=openvino")
    for path in sorted(folder.rglob("*.xml")):
        int8 = "quantized" in path.name
        shipped = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        precisions = {"int8 weights": None} if int8 else {"f32": "f32", "its default": None}
        for name, precision in precisions.items():
            wish = {"runtime": "openvino", "path": str(path), "precision": precision}
            yield Column(
                f"{weights}: OpenVINO {name}",
                weights,
                model,
                shipped,
                "the [MASK]s",
                [WORKER, json.dumps(wish)],
            )


class OfArrays(torch.nn.Module):
    """A model as a function of three tensors: what ExecuTorch takes."""

    def __init__(self, model: LertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, types: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Return [masked, vocabulary]."""
        logits = self.model(ids, token_type_ids=types, masked_positions=positions).logits
        assert logits is not None
        return logits


def executorch_columns(
    weights: str, model: Path, work: Path, arguments: argparse.Namespace
) -> Iterator[Column]:
    need("executorch", "torchao")
    for name in ("fp32", "int8"):
        folder = work / f"{weights}-executorch-{name}"
        folder.mkdir(exist_ok=True)
        for length in sorted({*arguments.lengths, AGREEMENT_LENGTH}):
            to_executorch(model, length, arguments.masked_share, folder, int8=name == "int8")
        largest = max(path.stat().st_size for path in folder.glob("*.pte"))
        wish = {"runtime": "executorch", "path": str(folder)}
        yield Column(
            f"{weights}: ExecuTorch XNNPACK {name}",
            weights,
            model,
            largest,
            "the [MASK]s",
            [WORKER, json.dumps(wish)],
        )


def to_executorch(model: Path, length: int, share: float, folder: Path, *, int8: bool) -> None:
    """Write `<length>.pte`: a single text of a fixed length, and a fixed number of [MASK]s."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    loaded, _ = model_dir.load(model, LertForPreTraining)
    loaded.set_tag_sets({})
    wrapped = OfArrays(loaded).eval()
    inputs = Text(tokenizer_files.load(model), "今天天气很好。").inputs(1, length, share)
    names = ("input_ids", "token_type_ids", "masked_positions")
    sample = tuple(torch.from_numpy(inputs[name]) for name in names)
    with torch.no_grad():
        program = torch.export.export(wrapped, sample)
        if int8:
            quantizer = XNNPACKQuantizer().set_global(
                get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
            )
            prepared = prepare_pt2e(program.module(), quantizer)
            prepared(*sample)
            program = torch.export.export(convert_pt2e(prepared), sample)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        with (folder / f"{length}.pte").open("wb") as file:
            lowered.to_executorch().write_to_file(file)


def agreements(
    columns: Sequence[Column], workers: Sequence[Any], texts: Any, share: float
) -> list[float]:
    """Return for each column how often its best piece is that of the PyTorch with its weights."""
    references = {
        column.weights: worker
        for column, worker in zip(columns, workers, strict=True)
        if column.name.endswith("PyTorch fp32")
    }
    same = np.zeros(len(columns))
    count = np.zeros(len(columns))
    for number in range(AGREEMENT_TEXTS):
        wanted: dict[str, Any] = {}
        for place, (column, worker) in enumerate(zip(columns, workers, strict=True)):
            inputs = texts[column.folder].inputs(1, AGREEMENT_LENGTH, share, first=number)
            if column.weights not in wanted:
                wanted[column.weights] = best(references[column.weights], inputs)
            found = best(worker, inputs)
            same[place] += (found == wanted[column.weights]).sum()
            count[place] += len(found)
    return [float(share) for share in same / count]


def best(worker: Any, inputs: Any) -> Any:
    """Return the best piece at each [MASK]."""
    logits = worker.ask("run", inputs)["logits"]
    if logits.ndim == 3:
        logits = logits.reshape(-1, logits.shape[-1])[inputs["masked_positions"]]
    return logits.argmax(-1)


def facts(model: Path) -> dict[str, Any]:
    config = model_dir.read_config(model)
    layers = range(config.num_hidden_layers)
    return {
        "parameters": model_dir.count_parameters(config),
        "vocabulary": config.vocab_size,
        "heads": [config.heads_of(layer) for layer in layers],
        "neurons": [config.intermediate_size_of(layer) for layer in layers],
    }


def table(results: Sequence[dict[str, Any]], lengths: Sequence[int]) -> Iterator[str]:
    for row in results:
        shown = "  ".join(
            f"{row['latency'][str(n)]['median_ms']:8.2f} ms {row['latency'][str(n)]['ratio']:6.2f}×"
            for n in lengths
        )
        yield (
            f"{row['name']:<48} {shown}  {row['bytes'] / 2**20:6.2f} MiB {row['bytes_ratio']:5.2f}×"
            f"  agreement {row['agreement_with_fp32']:.4f}"
        )


if __name__ == "__main__":
    main()
