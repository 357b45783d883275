"""What a checkpoint costs a training: LERT-base, two processes under ZeRO-2.

    python benchmarks/saving.py --corpus corpora/bench-128 --output benchmarks/results/saving.json

Runs that take turns: no saving; every few steps, written beside the training; the same, waited for.
The delay of a save is the time of all steps after the warm-up, over that of the runs without, by
the number of saves; it is told in seconds and in steps. The parts of a save are timed as well: what
the training waits for (the copy to the host), and what goes on beside it (writing, hashing,
flushing). The last save is left out of the runs: it ends with nothing to hide behind.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lert_ds.machine import description

ROOT = Path(__file__).parents[1]
WARM_UP_STEPS = 2
KINDS = {
    "no saving": ["train.save_every=1000"],
    "beside the training": ["train.save_in_background=true"],
    "waited for": ["train.save_in_background=false"],
}


def seconds_of_steps(corpus: Path, preset: str, steps: int, every: int, kind: str) -> list[float]:
    """Return how long each step after the warm-up took, saves among them."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        # One step more than the last save, so that it too is hidden or waited for.
        count = WARM_UP_STEPS + steps + 1
        command = [
            str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--module",
            "lert_ds", "pretrain", preset, f"corpus={corpus}", f"output={folder}/run",
            "corpus_valid=[]", "deepspeed=ds_configs/zero2_fp32.json", f"train.steps={count}",
            "train.batch_size=8", "train.micro_batch_size=4", "train.report_every=1",
            "train.evaluate_every=0", "train.data_workers=0", "train.keep_checkpoints=1",
            f"train.save_every={every}", *KINDS[kind],
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        lines = Path(folder, "run/metrics.jsonl").read_text("utf-8").splitlines()
    times = [record["time"] for line in lines if (record := json.loads(line))["kind"] == "train"]
    # The last interval holds the end of the run: its save is that of no step.
    return [b - a for a, b in itertools.pairwise(times)][WARM_UP_STEPS - 1 : -1]


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--preset", default="pretrain-base")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        for kind, rounds in rows.items():
            rounds.append(
                seconds_of_steps(
                    arguments.corpus, arguments.preset, arguments.steps, arguments.every, kind
                )
            )
    step = statistics.median(second for seconds in rows["no saving"] for second in seconds)
    figures: dict[str, Any] = {"a step, median, seconds": round(step, 3)}
    for kind in list(KINDS)[1:]:
        delays = [
            (sum(with_saves) - sum(without)) / (arguments.steps // arguments.every)
            for with_saves, without in zip(rows[kind], rows["no saving"], strict=True)
        ]
        figures[f"delay of a save, {kind}"] = {
            "seconds, by round": [round(delay, 3) for delay in delays],
            "in steps, median": round(statistics.median(delays) / step, 3),
        }
    told = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": description(["torch", "deepspeed", "lert-ds"]),
        "preset": arguments.preset,
        "steps a run": arguments.steps,
        "saves a run": arguments.steps // arguments.every,
        **figures,
        "seconds of each step": {
            kind: [[round(second, 3) for second in seconds] for seconds in rounds]
            for kind, rounds in rows.items()
        },
    }
    print(json.dumps(told, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
