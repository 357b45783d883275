"""How many instances a second the loader makes, alone, as one JSON object.

    python benchmarks/loader.py                               synthetic text of 512 tokens
    python benchmarks/loader.py --corpus corpora/wiki         a corpus of yours
    python benchmarks/loader.py --row-length 128              its instances cut to rows of 128

The numbers of workers are measured in turn, `--repeats` times over; the median counts.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lert_ds.data.loader import training_batches
from lert_ds.data.masking import MaskingConfig, VocabularyFacts
from lert_ds.data.native_masking import mask_rows
from lert_ds.data.rows import RowLengths, cut
from lert_ds.data.sampler import MicroBatches, Samples
from lert_ds.data.shards import Corpus, Manifest, write_manifest, write_shard
from lert_ds.labels import LTP_TAGS, TASKS

WORD_SIZES = (0.45, 0.43, 0.08, 0.04)
"""Shares of the words of 1, 2, 3 and 4 characters in Chinese Wikipedia, by jieba, rounded."""

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103


def write_synthetic(folder: Path, instances: int, length: int) -> Path:
    """Write a corpus of random words with the lengths of Chinese ones, a [SEP] each 40 tokens."""
    generator = np.random.default_rng(0)
    shape = (instances, length)
    ids = generator.integers(200, 21_128, shape)
    sizes = generator.choice([1, 2, 3, 4], size=instances * length, p=WORD_SIZES)
    starts = np.zeros(instances * length, dtype=np.bool_)
    firsts = np.cumsum(sizes) - sizes
    starts[firsts[firsts < starts.size]] = True
    starts = starts.reshape(shape)
    ids[:, 39::40] = ids[:, -1] = SEP
    ids[:, 0] = CLS
    starts &= ids >= 200
    tags = {task: generator.integers(0, len(LTP_TAGS[task]), shape) for task in TASKS}
    shard = write_shard(folder, "00000-000", {"input_ids": ids, "word_starts": starts, **tags})
    manifest = Manifest(
        length=length,
        vocabulary_size=21_128,
        tokenizer_sha256="synthetic",
        special_ids={"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK},
        tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
        instances=instances,
        shards=[shard],
        counts={},
        statistics={},
        config={},
        versions={},
    )
    write_manifest(folder, manifest)
    return folder


def instances_per_second(
    corpus: Corpus, workers: int, micro_batch_size: int, instances: int, row_length: int
) -> float:
    """Return the rate over `instances` instances, after the workers have started."""
    order = MicroBatches(len(corpus), 0, micro_batch_size, micro_batch_size)
    lengths = RowLengths([(0, row_length)] if row_length else [])
    batches = training_batches(corpus, MaskingConfig(), order, lengths=lengths, workers=workers)
    # What the workers had prepared before the clock started counts for nothing.
    for _ in range(8 * max(1, workers)):
        next(batches)
    count = -(-instances // micro_batch_size)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * micro_batch_size / (time.perf_counter() - started)


def mask_microseconds(corpus: Corpus, instances: int, row_length: int) -> float:
    """Return the processor time of cutting and masking one instance, among so many."""
    facts, config = VocabularyFacts.of(corpus.manifest), MaskingConfig()
    indices = np.arange(instances) % len(corpus)
    whole = corpus.rows(indices)
    started = time.process_time()
    rows = cut(whole, row_length or corpus.length, facts)
    mask_rows(rows, Samples(np.zeros_like(indices), indices), 0, config, facts)
    return (time.process_time() - started) / instances * 1e6


def lost_share(corpus: Corpus, row_length: int) -> float:
    """Return the share of the text that cutting instances to rows leaves out."""
    facts = VocabularyFacts.of(corpus.manifest)
    whole = corpus.rows(np.arange(len(corpus)))
    rows = cut(whole, row_length, facts)
    kept, all_of_it = (
        int(np.count_nonzero(~facts.never_masked[of.input_ids])) for of in (rows, whole)
    )
    return 1 - kept / all_of_it


def measure(corpus: Corpus, arguments: argparse.Namespace) -> dict[str, Any]:
    rates: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
    masking = []
    for _ in range(arguments.repeats):
        masking.append(mask_microseconds(corpus, 500, arguments.row_length))
        for workers, found in rates.items():
            found.append(
                instances_per_second(
                    corpus, workers, arguments.micro_batch_size, arguments.instances,
                    arguments.row_length,
                )
            )  # fmt: skip
    cutting: dict[str, Any] = {}
    if rows := arguments.row_length:
        cutting = {"row_length": rows, "lost_share": round(lost_share(corpus, rows), 4)}
    return {
        **cutting,
        "corpus": str(arguments.corpus or "synthetic"),
        "length": corpus.length,
        "micro_batch_size": arguments.micro_batch_size,
        "mask_microseconds": round(statistics.median(masking), 1),
        "instances_per_second": {
            f"workers={workers}": round(statistics.median(found))
            for workers, found in rates.items()
        },
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help="corpus folder; by default a synthetic one")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--micro-batch-size", type=int, default=32)
    parser.add_argument("--instances", type=int, default=8192, help="measured in each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=512, help="of a synthetic instance")
    parser.add_argument("--row-length", type=int, default=0, help="cut instances; 0: do not")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.corpus or write_synthetic(Path(folder), 20_000, arguments.length)
        print(json.dumps(measure(Corpus([path]), arguments), indent=2))


if __name__ == "__main__":
    main()
