"""Words and tags by LTP: our batches, and a sentence at a time, on one core.

    python benchmarks/ltp_batches.py --text TEXT.txt --output benchmarks/results/ltp-batches.json

The weights are random and the shape is LTP/small's (a BERT of 12 layers of 256, the four tasks):
LTP's own cannot be had without its hub, and what they are does not change how long they multiply.
`annotator` is what `lert-ds prepare` runs: sentences sorted by length, in batches of up to so many
tokens. `a sentence at a time` is `ltp.pipeline([sentence], tasks)` in a loop, the same tasks by the
same library. They take turns; what counts is the process's own CPU time.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lert_ds.machine import description

ROOT = Path(__file__).parents[1]
SHAPE = {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4,
         "intermediate_size": 1024}  # fmt: skip
TOKENS_A_BATCH = (256, 512, 1024, 2048, 4096)


def stand_in() -> ModuleType:
    """Return the tests' maker of LTP models, of the benchmark's width."""
    path = ROOT / "tests/lert_ds/corpus/annotators/conftest.py"
    spec = importlib.util.spec_from_file_location("ltp_stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HIDDEN = SHAPE["hidden_size"]  # type: ignore[attr-defined]
    return module


def write_model(folder: Path) -> None:
    """Write an LTP model of random weights."""
    from ltp_core.models.utils import instantiate

    maker = stand_in()
    vocabulary = maker._vocabulary()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    config = maker.neural_config(len(vocabulary))
    config["model"]["backbone"]["config"] |= SHAPE
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    torch.manual_seed(0)
    model = instantiate(config["model"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "task_heads" in name:
                parameter.mul_(6)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a UTF-8 .txt")
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from lert_ds.corpus.annotators.ltp_annotator import LtpAnnotator

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        annotators = {
            f"annotator, {tokens:,} tokens a batch": LtpAnnotator(
                name, device="cpu", tokens_per_batch=tokens
            )
            for tokens in TOKENS_A_BATCH
        }
    first = next(iter(annotators.values()))
    sentences = [
        sentence
        for line in options.text.read_text("utf-8").splitlines()
        for sentence in first.sentences(line)
        if sentence.strip()
    ][: options.sentences]
    taken: dict[str, list[float]] = {}
    loop = "a sentence at a time"
    for turn in range(options.turns + 1):
        for side in (*annotators, loop):
            started = time.process_time()
            if side == loop:
                for sentence in sentences:
                    first._model.parse([sentence])
            else:
                found = list(annotators[side].annotate((0, sentence) for sentence in sentences))
                assert len(found) == len(sentences)
            if turn:  # the first warms up
                taken.setdefault(side, []).append(time.process_time() - started)
                print(f"{turn}/{options.turns}, {side}: {taken[side][-1]:.2f}", file=sys.stderr)
    characters = sum(map(len, sentences))
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/ltp_batches.py", *sys.argv[1:]]),
        "machine": description(("ltp", "ltp-core", "torch")),
        "sentences": len(sentences),
        "characters": characters,
        "characters a second": {
            side: round(characters / statistics.median(seconds)) for side, seconds in taken.items()
        },
    }
    for side in annotators:
        ratios = [slow / fast for slow, fast in zip(taken[loop], taken[side], strict=True)]
        result[f"{side} / {loop}"] = {
            "ratio_median": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
