"""Pre-training speed on one processor core or two, beside others' training of the same model.

    python benchmarks/pretraining.py --corpus corpora/bench --output benchmarks/results/…json

Whole processes that take turns, round after round, so that a machine whose speed drifts slows all
of them: `lert-ds benchmark pretrain` (the engine and the steps of `lert-ds pretrain`), Hugging
Face's Trainer and a DeepSpeed loop (`pretraining_peers.py`), on the same instances, masks, batch
and, where there is a choice, precision. One thread, pinned to one core; what counts is the
processor's time of the median step after a warm-up, since others use the machine too. A ratio is
taken within a round.

LERT-small at length 512, and four layers of LERT-large. bf16 where the processor multiplies it.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from commands import ROOT, execute

from lert_ds.machine import description, multiplies_bf16

LENGTH = 512
MODELS = {
    "LERT-small": (["--size", "small"], ["architecture.size=small"], 4),
    "LERT-large, 4 layers": (
        ["--size", "large", "--layers", "4"],
        ["architecture.size=large", "architecture.layers=4"],
        2,
    ),
}
"""Name to the peers' words, ours, and the micro-batch."""


def ours(
    corpus: Path, words: list[str], micro_batch: int, precision: str, steps: int
) -> dict[str, Any]:
    """Return what `lert-ds benchmark pretrain` measures on one core."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [
            sys.executable, "-m", "lert_ds", "benchmark", "pretrain", "pretrain-small",
            f"corpus={corpus}", f"output={folder}/run", "train.data_workers=0",
            f"deepspeed=ds_configs/zero0_{precision}.json", *words,
            f"train.batch_size={micro_batch}", f"train.micro_batch_size={micro_batch}",
            "--steps", str(steps), "--warm-up", "1", "--json", str(result),
        ]  # fmt: skip
        execute(command)
        found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return found


def peer(
    name: str, corpus: Path, words: list[str], micro_batch: int, precision: str, steps: int
) -> dict[str, Any]:
    """Return what a peer measures on one core."""
    command = [
        sys.executable, str(ROOT / "benchmarks/pretraining_peers.py"), name, *words,
        "--corpus", str(corpus), "--micro-batch", str(micro_batch), "--precision", precision,
        "--steps", str(steps),
    ]  # fmt: skip
    found: dict[str, Any] = json.loads(execute(command).splitlines()[-1])
    return found


def compare(
    sides: Mapping[str, Callable[[], dict[str, Any]]], tokens: int, rounds: int
) -> dict[str, Any]:
    """Return the rates of sides that take turns, and the ratios of the first to the others."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    last: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        for name, side in sides.items():
            last[name] = side()
            seconds = last[name].get("processor_seconds") or last[name]["cpu_seconds"]
            rates[name].append(tokens / statistics.median(seconds))
        told = ", ".join(f"{name} {found[-1]:.0f}" for name, found in rates.items())
        print(f"{turn + 1}/{rounds}: {told}", file=sys.stderr, flush=True)
    first, *others = sides
    ratios = {
        name: [a / b for a, b in zip(rates[first], rates[name], strict=True)] for name in others
    }
    profile = {
        key: last[first][key]
        for key in (
            "flops_per_token", "matrix_flops_per_second", "kernels", "operation_shares",
            "longest_operations", "part_seconds", "peak_memory_bytes",
        )
    }  # fmt: skip
    median = statistics.median(rates[first])
    return {
        "tokens_per_second": {
            name: [round(rate) for rate in found] for name, found in rates.items()
        },
        "ratio": {
            f"{first} / {name}": {
                "median": round(statistics.median(found), 3),
                "range": [round(min(found), 3), round(max(found), 3)],
            }
            for name, found in ratios.items()
        },
        "mfu of the last round": round(
            rates[first][-1] * profile["flops_per_token"] / profile["matrix_flops_per_second"], 3
        ),
        "median tokens_per_second": round(median),
        "profile": profile,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="of instances of 512 tokens")
    parser.add_argument("--steps", type=int, default=4, help="measured, after the warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=sorted(MODELS), help="one of them alone")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    corpus, steps = options.corpus.resolve(), options.steps
    bf16 = multiplies_bf16(torch.device("cpu"))
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/pretraining.py", *sys.argv[1:]]),
        "machine": description(("torch", "deepspeed", "transformers", "accelerate")),
        "setting": "length 512, one thread on one core, processor seconds of the median step",
        "bf16": "measured" if bf16 else "not measured: this processor does not multiply it",
    }
    for name, (theirs, own, micro_batch) in MODELS.items():
        if options.model not in (None, name):
            continue
        for precision in ("fp32", "bf16") if bf16 else ("fp32",):
            print(f"{name}, {precision}", file=sys.stderr, flush=True)
            common = micro_batch, precision, steps
            sides: dict[str, Callable[[], dict[str, Any]]] = {
                "ours": lambda own=own, common=common: ours(corpus, own, *common),
                "Trainer": lambda t=theirs, common=common: peer("trainer", corpus, t, *common),
                "DeepSpeed loop": lambda t=theirs, common=common: peer(
                    "deepspeed", corpus, t, *common
                ),
            }
            result[f"{name}, {precision}"] = compare(sides, micro_batch * LENGTH, options.rounds)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
