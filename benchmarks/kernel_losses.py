r"""Whether kernels change a training: losses of runs with all of them fused and with all plain.

    python benchmarks/kernel_losses.py --corpus corpora/losses \
        --output benchmarks/results/kernel-losses.json

The quick-start's model on real text, fp32, dropout 0.1, a few seeds each. Masks and instances of a
seed are the same on both sides; dropout masks are others, as another seed's would be. So what tells
is the spread between seeds.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from commands import execute

from lert_ds.machine import description

SIDES = {
    "fused": [],
    "plain": [
        f"kernels.{name}={'off' if name == 'compile' else 'plain'}"
        for name in (
            "attention",
            "qkv",
            "activation",
            "residual",
            "loss",
            "dropout",
            "products",
            "compile",
        )
    ],
}


def train(words: list[str], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the losses of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lert_ds", "pretrain", "pretrain-quickstart",
            f"corpus={options.corpus.resolve()}", f"output={folder}/run", f"seed={seed}",
            "deepspeed=ds_configs/zero0_fp32.json", f"train.steps={options.steps}",
            "train.report_every=10", f"train.evaluate_every={options.steps}",
            "train.save_every=0", "train.data_workers=0", *words,
        ]  # fmt: skip
        execute(command)
        lines = Path(folder, "run/metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    (valid,) = (record for record in records if record["kind"] == "valid")
    return {
        "train": [round(r["mlm/loss"], 4) for r in records if r["kind"] == "train"],
        "valid": round(valid["mlm/loss"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="with held-out documents")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, Any] = {side: [] for side in SIDES}
    for seed in range(options.seeds):
        for side, words in SIDES.items():
            found[side].append(train(words, seed, options))
            print(f"{side}, seed {seed}: {found[side][-1]['valid']}", file=sys.stderr, flush=True)
    valid = {side: [run["valid"] for run in runs] for side, runs in found.items()}
    result = {
        "command": " ".join(["python", "benchmarks/kernel_losses.py", *sys.argv[1:]]),
        "machine": description(("torch", "deepspeed", "transformers")),
        "held-out loss": {
            side: {
                "mean": round(statistics.mean(losses), 4),
                "deviation": round(statistics.stdev(losses), 4) if len(losses) > 1 else None,
            }
            for side, losses in valid.items()
        },
        "largest difference of a report's training loss, same seed": round(
            max(
                abs(a - b)
                for one, other in zip(found["fused"], found["plain"], strict=True)
                for a, b in zip(one["train"], other["train"], strict=True)
            ),
            4,
        ),
        "runs": found,
    }
    options.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))


if __name__ == "__main__":
    main()
