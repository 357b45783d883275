"""Preparing a corpus with jieba: workers, the share of aligning and packing, memory.

    python benchmarks/preparing.py --text TEXT.txt --megabytes 12 --memory-megabytes 200

The text is repeated to the size asked for. Workers: whole processes that take turns, so that
a machine whose speed drifts slows both. Memory: the largest resident set of any process of a run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lert_ds.machine import description

BIN = Path(sys.executable).parent


def repeat(text: bytes, megabytes: float, path: Path) -> Path:
    """Write `text` again and again until `path` has `megabytes`."""
    with path.open("wb") as file:
        while file.tell() < megabytes * 1e6:
            file.write(text)
    return path


def prepare(text: Path, output: Path, workers: int, vocabulary: Path) -> float:
    """Run `lert-ds prepare` and return its seconds."""
    arguments = [
        "prepare", "prepare-quickstart", f"input={text}", f"output={output}", "held_out=0",
        "max_length=512", f"tokenizer={vocabulary}", f"executor.workers={workers}",
        "overwrite=true",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    done = subprocess.run(
        [str(BIN / "lert-ds"), *arguments], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - started


def posseg_seconds(text: str) -> float:
    """Return how long `jieba.posseg` takes on `text`, loaded before."""
    import jieba.posseg

    jieba.initialize()
    list(jieba.posseg.cut("热身"))
    started = time.perf_counter()
    for line in text.splitlines():
        list(jieba.posseg.cut(line))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a UTF-8 .txt")
    parser.add_argument("--vocabulary", type=Path, required=True, help="a vocab.txt")
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--memory-megabytes", type=float, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    content = options.text.read_bytes()
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/preparing.py", *sys.argv[1:]]),
        "machine": description(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = repeat(content, options.megabytes, folder / "text.txt")
        pairs = [
            [prepare(text, folder / "corpus", n, options.vocabulary) for n in (1, 2)]
            for _ in range(options.pairs)
        ]
        ratios = [one / two for one, two in pairs]
        result["two workers / one"] = {
            "megabytes": options.megabytes,
            "seconds": [round(statistics.median(run), 1) for run in zip(*pairs, strict=True)],
            "ratio_median": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
        speed = json.loads((folder / "corpus/statistics.json").read_text("utf-8"))["speed"]
        characters = len(content.decode("utf-8"))
        result["characters a second, one process"] = {
            "jieba.posseg": round(characters / posseg_seconds(content.decode("utf-8"))),
            **{step: round(facts["characters_per_second"]) for step, facts in speed.items()},
        }
        big = repeat(content, options.memory_megabytes, folder / "big.txt")
        seconds = prepare(big, folder / "big", 2, options.vocabulary)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result["memory"] = {
            "megabytes_of_text": options.memory_megabytes,
            "seconds_with_two_workers": round(seconds),
            "largest_process_gib": round(peak / 2**20, 2),
        }
    printed = json.dumps(result, indent=2, ensure_ascii=False)
    print(printed)
    if options.output:
        options.output.write_text(printed + "\n", "utf-8")


if __name__ == "__main__":
    main()
