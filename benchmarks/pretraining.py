"""Pre-training speed on one processor core or two, beside Hugging Face's Trainer.

    python benchmarks/pretraining.py --corpus corpora/wiki-512 --output benchmarks/results/…json

Three comparisons, each of whole processes that take turns, so that a machine whose speed drifts
slows both: ours and `Trainer` + `BertForMaskedLM` in fp32 and in bf16 on one core, with the same
LERT-small, instances, masks and batch; and ours on two processes under ZeRO-2 and on one. The
figures are tokens a second over the steps after the first, which warms up.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lert_ds.machine import description

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
MICRO_BATCH_SIZE = 4
WARM_UP_STEPS = 2


def ours(corpus: Path, steps: int, machine: str, processes: int) -> float:
    """Return the tokens a second of `lert-ds pretrain`."""
    with tempfile.TemporaryDirectory() as folder:
        # One report after the warm-up, and one of all the rest.
        arguments = [
            "pretrain", "pretrain-small", f"corpus={corpus}", f"output={folder}/run",
            f"deepspeed=ds_configs/{machine}.json", f"train.steps={WARM_UP_STEPS + steps}",
            f"train.batch_size={MICRO_BATCH_SIZE * processes}",
            f"train.micro_batch_size={MICRO_BATCH_SIZE}", "train.report_every=1",
            "train.evaluate_every=0", "train.save_every=0", "train.data_workers=0",
        ]  # fmt: skip
        launcher = [str(BIN / "deepspeed"), "--num_gpus", str(processes), "--module"]
        execute([*launcher, "lert_ds", *arguments], processes)
        lines = Path(folder, "run/metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines][WARM_UP_STEPS:]
    # Each report is of one step of equal tokens: the mean rate is the harmonic mean.
    return statistics.harmonic_mean([record["tokens_per_second"] for record in records])


def trainer(corpus: Path, steps: int, precision: str) -> float:
    """Return the tokens a second of Hugging Face's Trainer."""
    command = [
        sys.executable, __file__, "--corpus", str(corpus), "--steps", str(steps),
        "--trainer", precision,
    ]  # fmt: skip
    return float(execute(command, 1).splitlines()[-1])


def execute(command: list[str], cores: int) -> str:
    """Run a command on `cores` cores with one thread a process and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    pinned = ["taskset", "--cpu-list", f"0-{cores - 1}", *command]
    done = subprocess.run(
        pinned, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def run_trainer(corpus_folder: Path, steps: int, precision: str) -> None:
    """Train with Hugging Face's Trainer in this process and print its tokens a second."""
    import numpy as np
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from lert_ds.architecture import SIZES
    from lert_ds.data.masking import MaskingConfig, VocabularyFacts, instance_generator, mask
    from lert_ds.data.shards import Corpus

    corpus = Corpus([corpus_folder])
    facts, masking = VocabularyFacts.of(corpus.manifest), MaskingConfig()

    class Masked(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        """The same instances with the same masks, as Trainer takes them."""

        def __len__(self) -> int:
            return len(corpus)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            masked = mask(corpus[index], instance_generator(0, 0, index), masking, facts)
            labels = np.full(corpus.length, -100, dtype=np.int64)
            labels[masked.positions] = masked.labels
            ids = masked.input_ids.astype(np.int64)
            real = (ids != facts.pad_id).astype(np.int64)
            return {
                "input_ids": torch.from_numpy(ids),
                "attention_mask": torch.from_numpy(real),
                "labels": torch.from_numpy(labels),
            }

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When each step ended."""

        times: list[float] = []  # noqa: RUF012

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    small = SIZES["small"]
    config = BertConfig(
        vocab_size=corpus.manifest.vocabulary_size,
        num_hidden_layers=small["layers"],
        hidden_size=small["hidden_size"],
        num_attention_heads=small["heads"],
        intermediate_size=small["intermediate_size"],
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=MICRO_BATCH_SIZE,
            max_steps=WARM_UP_STEPS + steps,
            learning_rate=1e-4,
            bf16=precision == "bf16",
            use_cpu=True,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        clock = Clock()
        Trainer(
            model=BertForMaskedLM(config),
            args=arguments,
            train_dataset=Masked(),
            callbacks=[clock],
        ).train()
    seconds = clock.times[-1] - clock.times[WARM_UP_STEPS - 1]
    print(steps * MICRO_BATCH_SIZE * corpus.length / seconds)


def pair(name: str, first: Callable[[], float], second: Callable[[], float], n: int) -> Any:
    """Return the rates of two commands that take turns `n` times, and their ratios."""
    rates = []
    for turn in range(n):
        rates.append((first(), second()))
        print(f"{name} {turn + 1}/{n}: {rates[-1][0]:.0f} and {rates[-1][1]:.0f}", file=sys.stderr)
    ratios = [a / b for a, b in rates]
    return {
        "tokens_per_second": [round(statistics.median(one)) for one in zip(*rates, strict=True)],
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "pairs": n,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="of instances of 512 tokens")
    parser.add_argument("--steps", type=int, default=6, help="measured, after the warm-up")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--trainer", choices=["fp32", "bf16"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    corpus, steps = options.corpus.resolve(), options.steps
    if options.trainer:
        run_trainer(corpus, steps, options.trainer)
        return
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/pretraining.py", *sys.argv[1:]]),
        "machine": description(),
        "model": "LERT-small (12 × 256), length 512, micro-batch 4, one thread a process",
    }
    for precision in ("fp32", "bf16"):
        result[f"ours / Trainer, {precision}, one core"] = pair(
            f"ours and Trainer, {precision}",
            lambda precision=precision: ours(corpus, steps, f"zero1_{precision}", 1),
            lambda precision=precision: trainer(corpus, steps, precision),
            options.pairs,
        )
    result["two processes / one, ZeRO-2 fp32, one core each"] = pair(
        "two processes and one",
        lambda: ours(corpus, steps, "zero2_fp32", 2),
        lambda: ours(corpus, steps, "zero2_fp32", 1),
        options.pairs,
    )
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
