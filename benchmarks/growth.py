r"""How the cost of pre-training grows: length, micro-batch, processes, size of the corpus.

    python benchmarks/growth.py --text TEXT.txt --vocabulary vocab.txt \
        --output benchmarks/results/growth.json

LERT-small's shape, fp32, one thread a process; `lert-ds benchmark pretrain` for each point, in
rounds, by the processor's time of a step (by the clock for two processes, which wait for each
other). The corpus is the text 1, 10 and 100 times over (`--times`), prepared with one worker. One
chart a question stands beside the JSON: `growth-length.svg`, ….
"""

import argparse
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import preparing
from commands import execute

from lert_ds.data.loader import training_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus
from lert_ds.machine import description
from lert_ds.report.scatter import Point, scatter

BIN = Path(sys.executable).parent
STYLE = (
    "<style>text{font:12px sans-serif}.rule{stroke:#ddd}.dot{fill:#2563eb}"
    ".axis{font-size:13px}</style>"
)


def measure(words: list[str], steps: int, processes: int = 1) -> dict[str, Any]:
    """Return what `lert-ds benchmark pretrain` says, on as many cores as processes."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        launcher = (
            [sys.executable, "-m", "lert_ds"]
            if processes == 1
            else [str(BIN / "deepspeed"), "--num_gpus", str(processes), "--module", "lert_ds"]
        )
        command = [
            *launcher, "benchmark", "pretrain", "pretrain-small", "corpus=none",
            f"output={folder}/run", *words, "--steps", str(steps), "--warm-up", "1",
            "--json", str(result),
        ]  # fmt: skip
        execute(command, processes)
        found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return found


def batch(size: int) -> list[str]:
    return [f"train.batch_size={size}", f"train.micro_batch_size={size}"]


def of_one_process(found: dict[str, Any]) -> float:
    """Return tokens a second of the processor's time."""
    return float(found["tokens_per_step"] / statistics.median(found["processor_seconds"]))


def rounds_of(cases: Mapping[int, list[str]], options: argparse.Namespace) -> dict[str, list[int]]:
    """Return tokens a second of each case in each round."""
    fp32 = "deepspeed=ds_configs/zero0_fp32.json"
    rates: dict[str, list[int]] = {str(name): [] for name in cases}
    for _ in range(options.rounds):
        for name, words in cases.items():
            found = measure([*words, fp32], options.steps)
            rates[str(name)].append(round(of_one_process(found)))
            print(f"{name}: {rates[str(name)][-1]}", file=sys.stderr, flush=True)
    return rates


def processes(options: argparse.Namespace) -> dict[str, list[int]]:
    """Return tokens a second of all processes together, each with its own core, by the clock."""
    zero2 = "deepspeed=ds_configs/zero2_fp32.json"
    rates: dict[str, list[int]] = {"1": [], "2": []}
    for _ in range(options.rounds):
        for count in (1, 2):
            words = [f"train.batch_size={4 * count}", "train.micro_batch_size=4", zero2]
            rates[str(count)].append(
                round(measure(words, options.steps, count)["tokens_per_second"])
            )
            print(f"processes {count}: {rates[str(count)][-1]}", file=sys.stderr, flush=True)
    return rates


def corpora(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return what preparing and reading a corpus of each size costs."""
    text, found = options.text.read_bytes(), {}
    for times in options.times:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = preparing.repeat(text, times * len(text) / 1e6, folder / "text.txt")
            seconds = preparing.prepare(path, folder / "corpus", 1, options.vocabulary)
            corpus = Corpus([folder / "corpus"])
            order = MicroBatches(len(corpus), 0, 32, 32)
            batches = training_batches(corpus, MaskingConfig(), order)
            next(batches)
            started = time.process_time()
            for _ in itertools.islice(batches, 64):
                pass
            rate = 64 * 32 * corpus.length / (time.process_time() - started)
            found[str(times)] = {
                "megabytes": round(times * len(text) / 1e6, 1),
                "instances": len(corpus),
                "prepare_seconds": round(seconds, 1),
                "prepare_megabytes_per_second": round(times * len(text) / 1e6 / seconds, 3),
                "largest_process_gib": round(
                    resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 3
                ),
                "loader_tokens_per_second": round(rate),
            }
            print(f"{times} times: {found[str(times)]}", file=sys.stderr, flush=True)
    return found


def draw(path: Path, values: Mapping[str, float], x_title: str, y_title: str) -> None:
    """Write a chart of one value over another that stands alone."""
    points = [Point(name, 0, float(name), value) for name, value in values.items()]
    chart = scatter(points, x_title, y_title)
    path.write_text(chart.replace(">", f' xmlns="http://www.w3.org/2000/svg">{STYLE}', 1), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a UTF-8 .txt")
    parser.add_argument("--vocabulary", type=Path, required=True, help="a vocab.txt")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    # Instances stay those of 512 tokens; each is as many rows as that makes.
    lengths = {
        length: [*batch(4), f"train.lengths=[[0,{length}]]"] for length in (64, 128, 256, 512)
    }
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]]),
        "machine": description(("torch", "deepspeed", "transformers")),
        # First: its memory is that of the largest process until then.
        "by size of the corpus": corpora(options),
        "tokens a second by length": rounds_of(lengths, options),
        "tokens a second by micro-batch": rounds_of(
            {size: batch(size) for size in (1, 2, 4, 8, 16)}, options
        ),
        "tokens a second by processes": processes(options),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for name, title in (
        ("length", "tokens of a row"), ("micro-batch", "instances of a micro-batch"),
        ("processes", "processes"),
    ):  # fmt: skip
        rates = result[f"tokens a second by {name}"]
        medians = {place: statistics.median(found) for place, found in rates.items()}
        draw(options.output.with_name(f"growth-{name}.svg"), medians, title, "tokens a second")
    rates = {
        times: facts["prepare_megabytes_per_second"]
        for times, facts in result["by size of the corpus"].items()
    }
    draw(options.output.with_name("growth-corpus.svg"), rates, "times the text", "MB a second")


if __name__ == "__main__":
    main()
