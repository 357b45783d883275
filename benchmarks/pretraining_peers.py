"""What others train BERT with, timed: Hugging Face's Trainer, and DeepSpeed around a plain loop.

    python benchmarks/pretraining_peers.py trainer --size small --length 512 --precision fp32
    python benchmarks/pretraining_peers.py deepspeed --size large --layers 4 --precision bf16

Both train `BertForMaskedLM` as its users do: labels of -100 at every place that is not masked,
logits at all of them, SDPA, dropout 0.1, fused AdamW. The masks are those that our trainer draws,
of a corpus or of random instances. Trainer in bf16 autocasts fp32 weights; DeepSpeed's loop has
ZeRO-1 with bf16 weights and its FusedAdam, as its tutorials have. Prints one JSON line.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

from lert_ds.architecture import SIZES
from lert_ds.corpora import open_folders
from lert_ds.data.masking import MaskingConfig
from lert_ds.labels import LTP_TAGS
from lert_ds.objective import Batch
from lert_ds.train.trainer import TrainConfig
from lert_ds.training_benchmark.synthetic_data import SyntheticData
from lert_ds.training_data import LERT_VOCABULARY_SIZE, DataFacts

WARM_UP_STEPS = 2
IS_CUDA = torch.cuda.is_available()


def batches(options: argparse.Namespace) -> Iterator[Batch]:
    """Yield the micro-batches that our own training would take."""
    train = TrainConfig(
        steps=10_000,
        batch_size=options.micro_batch,
        micro_batch_size=options.micro_batch,
        learning_rate=1e-4,
        data_workers=0,
    )
    if options.corpus is not None:
        data: Any = open_folders([options.corpus], [])
    else:
        facts = DataFacts(options.length, LERT_VOCABULARY_SIZE, 0, LTP_TAGS, None, 0)
        data = SyntheticData(facts, MaskingConfig())
    return (batch for _, batch in data.batches(train, 0, options.micro_batch).training(0, 0))


def as_bert_takes_it(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch with a label for every place."""
    labels = torch.full(batch.input_ids.shape, -100)
    labels.view(-1)[batch.masked_positions] = batch.labels
    real = batch.attention_mask
    mask = torch.ones_like(batch.input_ids) if real is None else real.long()
    return {"input_ids": batch.input_ids, "attention_mask": mask, "labels": labels}


def model(options: argparse.Namespace) -> BertForMaskedLM:
    """Return the model with random weights."""
    torch.manual_seed(0)
    shape = SIZES[options.size]
    return BertForMaskedLM(
        BertConfig(
            vocab_size=LERT_VOCABULARY_SIZE,
            num_hidden_layers=options.layers or shape["layers"],
            hidden_size=shape["hidden_size"],
            num_attention_heads=shape["heads"],
            intermediate_size=shape["intermediate_size"],
        )
    )


class Clock:
    """When steps ended, on the wall and by the processor."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def mark(self) -> None:
        """Say that a step has ended."""
        if IS_CUDA:
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def result(self) -> dict[str, Any]:
        """Return seconds a step, after the warm-up."""
        return {
            name: [
                later - sooner for sooner, later in itertools.pairwise(times[WARM_UP_STEPS - 1 :])
            ]
            for name, times in (("step_seconds", self.wall), ("cpu_seconds", self.cpu))
        }


def run_trainer(options: argparse.Namespace) -> Clock:
    """Train with Hugging Face's Trainer."""
    clock = Clock()

    class Rows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        """Single instances: Trainer makes the batches."""

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches(options):
                rows = as_bert_takes_it(batch)
                for place in range(len(batch.input_ids)):
                    yield {name: value[place] for name, value in rows.items()}

    class OnStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.accumulate,
            max_steps=WARM_UP_STEPS + options.steps,
            learning_rate=1e-4,
            bf16=options.precision == "bf16",
            use_cpu=not IS_CUDA,
            torch_compile=options.compile,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(
            model=model(options), args=arguments, train_dataset=Rows(), callbacks=[OnStep()]
        ).train()
    return clock


def run_deepspeed(options: argparse.Namespace) -> Clock:
    """Train with DeepSpeed's engine in a loop of four lines."""
    import deepspeed
    from deepspeed.ops.adam import FusedAdam

    from lert_ds.train.engine import join_processes

    join_processes()
    bert = model(options)
    if options.compile:
        bert.compile()
    tree = {
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "gradient_accumulation_steps": options.accumulate,
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": options.precision == "bf16"},
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=bert, optimizer=FusedAdam(bert.parameters(), lr=1e-4), config=tree
    )
    engine.train()
    clock = Clock()
    count = (WARM_UP_STEPS + options.steps) * options.accumulate
    for batch in itertools.islice(batches(options), count):
        inputs = {name: t.to(engine.device) for name, t in as_bert_takes_it(batch).items()}
        loss = engine(**inputs).loss
        engine.backward(loss)
        updates = engine.is_gradient_accumulation_boundary()
        engine.step()
        if updates:
            clock.mark()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=["trainer", "deepspeed"])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--layers", type=int, help="fewer than the size has")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--corpus", type=Path, help="by default random instances")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches an update")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    clock = {"trainer": run_trainer, "deepspeed": run_deepspeed}[options.peer](options)
    memory = torch.cuda.max_memory_allocated() if IS_CUDA else None
    tokens = options.micro_batch * options.accumulate * options.length
    print(json.dumps({**clock.result(), "tokens_per_step": tokens, "peak_memory_bytes": memory}))


if __name__ == "__main__":
    main()
