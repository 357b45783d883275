"""`lert-ds predict FOLDER TEXT…`: fill [MASK], and tag the words that stand there.

    $ lert-ds predict runs/quickstart/model '今天天[MASK]很好。' --top-k 3
    今天天气很好。
      [MASK] 1   气 91.3 %   氣 2.1 %   晴 1.4 %   pos n 98.0 %   ner O 99.9 %   dep SBV 71.2 %

A model folder runs on PyTorch; an edge folder on ONNX Runtime, and then PyTorch is not imported.
Every [MASK] is filled for itself, given all the others as [MASK].
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lert_ds import predictions
from lert_ds.edge.folder import is_edge_folder
from lert_ds.errors import UserError
from lert_ds.predictions import Prediction

BATCH_SIZE = 32

Fill = Callable[[list[str], int], list[Prediction]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "model", metavar="FOLDER", help="a model folder, a name on the hub, or an edge folder"
    )
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="+",
        help="a text with one [MASK] or more; - reads one text a line from standard input",
    )
    parser.add_argument("--top-k", type=int, default=5, help="pieces to show for each [MASK]")
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    parser.add_argument("--device", help="of a model folder: auto, cpu, cuda, cuda:1, …")
    parser.add_argument(
        "--graph",
        choices=("int8", "fp32"),
        help="of an edge folder; by default int8 where there is one",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the predictions for the texts of the command line."""
    fill = _edge(arguments) if is_edge_folder(Path(arguments.model)) else _pytorch(arguments)
    texts = predictions.read_texts(arguments.texts)
    for start in range(0, len(texts), BATCH_SIZE):
        for prediction in fill(texts[start : start + BATCH_SIZE], arguments.top_k):
            sys.stdout.write(f"{predictions.show(prediction, as_json=arguments.json)}\n")
        sys.stdout.flush()


def _edge(arguments: argparse.Namespace) -> Fill:
    if arguments.device not in (None, "auto", "cpu"):
        raise UserError(
            f"--device {arguments.device}: {arguments.model} is an edge folder, which runs on the "
            "CPU; leave --device out"
        )
    try:
        from lert_ds.edge.edge_model import EdgeModel
    except ModuleNotFoundError as error:
        if error.name not in ("onnxruntime", "tokenizers"):
            raise
        raise UserError(
            f"{arguments.model}: an edge folder runs on {error.name}, which is not installed; "
            "say pip install 'lert-ds[export]'"
        ) from error
    return EdgeModel(arguments.model, arguments.graph).fill


def _pytorch(arguments: argparse.Namespace) -> Fill:
    if arguments.graph is not None:
        raise UserError(
            f"--graph {arguments.graph}: {arguments.model} is no edge folder; leave --graph out"
        )
    from lert_ds import fill_mask

    device = fill_mask.find_device(arguments.device or "auto")
    model, tokenizer = fill_mask.load(arguments.model)
    model.to(device)
    return lambda texts, top_k: fill_mask.fill(model, tokenizer, texts, top_k)
