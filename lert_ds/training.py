"""What every training shares, from its configuration to its model folder.

    configuration → corpora → objective → engine → trainer → weights → model folder, summary.json

A command builds the objective; pre-training, distillation and recovery differ in nothing else.
"""

import hashlib
import importlib.metadata
import logging
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lert_ds import arithmetic, distributed
from lert_ds.config import Config, Paths, dump
from lert_ds.data.loader import evaluation_batches, training_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.sampler import MicroBatches, check_batch_size
from lert_ds.data.shards import HELD_OUT, MANIFEST, Corpus
from lert_ds.errors import CheckpointError, ConfigError, CorpusError
from lert_ds.files import refuse_finished, write_json
from lert_ds.labels import IGNORE_INDEX
from lert_ds.objective import Batch
from lert_ds.train import deepspeed_config
from lert_ds.train.checkpoint import Checkpoints
from lert_ds.train.engine import Engine, join_processes, leave_processes
from lert_ds.train.optim import OptimizerConfig
from lert_ds.train.schedule import ScheduleConfig
from lert_ds.train.tracking import WANDB_ID, Reporter, TrackingConfig
from lert_ds.train.trainer import Data, TrainConfig, Trainer

logger = logging.getLogger(__name__)

FINISHED = "model/config.json"
"""What a finished run folder holds."""


class TrainingRun(Config):
    """The keys that every training has."""

    output: Path
    """Run folder to write: config.json, metrics.jsonl, checkpoints, model."""
    corpus: Paths
    """Corpus folder, or a list of them, to train on."""
    corpus_valid: Paths = ()
    """Corpus folders to evaluate on; by default the held_out folders of the corpus."""
    deepspeed: Path = Path("ds_configs/zero1_bf16.json")
    """DeepSpeed's JSON: ZeRO stage, offload, precision, communication."""
    seed: int = Field(20221110, ge=0)
    """Of the first weights, the order of instances, their masks and dropout."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest checkpoint in the output folder; never: start from step 0."""
    overwrite: bool = False
    """Replace what the output folder holds, finished or not."""
    masking: MaskingConfig = MaskingConfig()
    """Which tokens are predicted."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the numbers go."""
    train: TrainConfig
    """Steps, batch, learning rate, how often to look."""


@dataclass(frozen=True)
class Corpora:
    """What a run trains and is evaluated on."""

    train: Corpus
    valid: Corpus | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training manifests: the same instances in the same order."""
        manifests = [(folder / MANIFEST).read_bytes() for folder in self.train.folders]
        return hashlib.sha256(b"".join(manifests)).hexdigest()


@dataclass(frozen=True)
class Arithmetic:
    """The numbers that follow from a configuration before anything is trained."""

    shape: arithmetic.Shape
    parameters: int
    masked_share: float
    accumulation: int
    tree: dict[str, Any]
    """DeepSpeed's resolved configuration."""
    flops_per_token: float
    memory: arithmetic.Memory


def open_corpora(run: TrainingRun) -> Corpora:
    """Return the corpora of a run.

    Raises:
        CorpusError: one is missing, cut short, or of another tokenizer, length or tag set.
    """
    if not run.corpus:
        raise ConfigError("corpus is empty; name one corpus folder or more")
    train = Corpus(run.corpus)
    if not len(train):
        raise CorpusError(f"{run.corpus[0]}: the corpus has no instance")
    held_out = [folder / HELD_OUT for folder in run.corpus]
    valid = run.corpus_valid or tuple(folder for folder in held_out if folder.is_dir())
    corpora = Corpora(train, Corpus(valid) if valid else None)
    if corpora.valid is not None:
        # One corpus of all folders refuses whatever differs between any two of them.
        Corpus([run.corpus[0], *valid])
    return corpora


def work_out(
    run: TrainingRun,
    shape: arithmetic.Shape,
    parameters: int,
    length: int,
    processes: int,
) -> Arithmetic:
    """Return the batch, the operations and the memory of a run on `processes`.

    Raises:
        ConfigError: the batch does not divide, or DeepSpeed's JSON contradicts the run.
    """
    train = run.train
    check_batch_size(train.batch_size, train.micro_batch_size, processes)
    accumulation = train.batch_size // (train.micro_batch_size * processes)
    tree = deepspeed_config.resolve(
        run.deepspeed,
        {
            "train_batch_size": train.batch_size,
            "train_micro_batch_size_per_gpu": train.micro_batch_size,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": train.gradient_clipping,
        },
    )
    masked_share = run.masking.budget(length - 2, length) / length
    memory = arithmetic.memory_per_process(
        shape,
        parameters,
        stage=deepspeed_config.stage(tree),
        precision=deepspeed_config.precision(tree),
        processes=processes,
        micro_batch_size=train.micro_batch_size,
        length=length,
        masked_share=masked_share,
        checkpointing=train.gradient_checkpointing,
        offload_optimizer=deepspeed_config.offloads_optimizer(tree),
        offload_parameters=deepspeed_config.offloads_parameters(tree),
    )
    flops = arithmetic.flops_per_token(shape, length, masked_share)
    return Arithmetic(shape, parameters, masked_share, accumulation, tree, flops, memory)


def explain(run: TrainingRun, numbers: Arithmetic, corpora: Corpora, processes: int) -> str:
    """Return the arithmetic of a run as text, for --dry-run."""
    train, memory, corpus = run.train, numbers.memory, corpora.train
    tokens = train.steps * train.batch_size * corpus.length
    gib = 2**30
    rows = [
        ("parameters", f"{numbers.parameters:,}"),
        (
            "batch",
            f"{train.batch_size:,} instances = {train.micro_batch_size} a micro-batch × "
            f"{numbers.accumulation} accumulated × {processes} processes",
        ),
        ("corpus", f"{len(corpus):,} instances of {corpus.length} tokens"),
        ("held out", f"{len(corpora.valid):,} instances" if corpora.valid else "none"),
        ("masked", f"{numbers.masked_share:.1%} of the tokens"),
        ("steps", f"{train.steps:,} = {train.steps * train.batch_size / len(corpus):,.1f} epochs"),
        ("tokens", f"{tokens:,}"),
        (
            "operations",
            f"{numbers.flops_per_token:.3g} a token, {numbers.flops_per_token * tokens:.3g} in all",
        ),
        (
            "memory a process",
            f"{memory.device_total / gib:.2f} GiB = weights {memory.weights / gib:.2f} + gradients "
            f"{memory.gradients / gib:.2f} + optimizer {memory.optimizer / gib:.2f} + activations "
            f"about {memory.activations / gib:.2f}; on the host {memory.host / gib:.2f}",
        ),
    ]
    return "\n".join(f"{name:<17} {text}" for name, text in rows)


@dataclass(frozen=True)
class Trained:
    """What a training leaves, on the main process; elsewhere `weights` is empty."""

    weights: dict[str, Tensor]
    """Parameters of the objective by name, whole, fp32, on the host."""
    summary: dict[str, Any]


@contextmanager
def prepared(run: TrainingRun, corpora: Corpora) -> Iterator[None]:
    """Join the processes, verify the corpora, and make the run folder; leave at the end.

    The folder is cleared where `overwrite` says so, after every process has checked what it can.

    Raises:
        ConfigError: the output folder holds a finished result, or is a file.
        CorpusError: a shard is not what its manifest says.
    """
    refuse_finished(run.output, FINISHED, run.overwrite)
    join_processes()
    try:
        for corpus in (corpora.train, corpora.valid):
            if corpus is not None:  # the processes of a host share the hashing
                corpus.verify(distributed.local_rank(), distributed.local_world_size())
        distributed.barrier()
        if distributed.is_main():
            _make_folder(run)
        distributed.barrier()
        yield
    finally:
        leave_processes()


def _make_folder(run: TrainingRun) -> None:
    if run.overwrite or run.resume == "never":
        for name in ("checkpoints", "model", "tensorboard"):
            shutil.rmtree(run.output / name, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json", "report.html", WANDB_ID):
            (run.output / name).unlink(missing_ok=True)
    run.output.mkdir(parents=True, exist_ok=True)
    write_json(run.output / "config.json", dump(run))


def fit(
    run: TrainingRun,
    objective: nn.Module,
    corpora: Corpora,
    numbers: Arithmetic,
) -> Trained:
    """Train `objective` to the end; all processes must call it.

    Raises:
        CheckpointError: the output folder's checkpoint is of another corpus or layout.
        NonFiniteError: the loss or a gradient is inf or nan.
    """
    started = time.time()
    engine = Engine(objective, run.optimizer, numbers.tree)
    checkpoints = Checkpoints(run.output / "checkpoints", run.train.keep_checkpoints)
    reporter = Reporter(run.tracking, run.output, run.train.steps, dump(run), distributed.is_main())
    trainer = Trainer(
        engine,
        objective,  # type: ignore[arg-type]
        _data(run, corpora),
        run.train,
        run.schedule,
        reporter=reporter,
        checkpoints=checkpoints,
        seed=run.seed,
        flops_per_token=numbers.flops_per_token,
        peak_flops=_peak_flops(engine),
    )
    try:
        state = {"corpus": corpora.fingerprint, "seed": run.seed, "config": dump(run)}
        if (tag := checkpoints.newest()) is not None:
            _check_same_run(trainer.resume(tag), state, tag, run)
        valid = trainer.fit(state)
        weights = engine.full_weights()
    finally:
        reporter.close()
    summary = {
        "steps": trainer.step,
        "samples": trainer.samples,
        "parameters": numbers.parameters,
        "processes": distributed.world_size(),
        "seconds": round(time.time() - started, 1),
        "valid": valid,
        "baselines": baselines(corpora),
        "versions": versions(),
    }
    return Trained(weights, summary)


def _check_same_run(
    saved: dict[str, Any], state: dict[str, Any], tag: str, run: TrainingRun
) -> None:
    for key, meaning in (("corpus", "another corpus"), ("seed", "another seed")):
        if saved.get(key) != state[key]:
            raise CheckpointError(
                f"{run.output / 'checkpoints' / tag}: it was trained with {meaning}; go on with "
                "that one, or start over with overwrite=true"
            )


def _data(run: TrainingRun, corpora: Corpora) -> Data:
    train, pin = run.train, torch.cuda.is_available()

    def training(samples: int) -> Iterator[tuple[int, Batch]]:
        micro_batches = MicroBatches(
            corpus_size=len(corpora.train),
            seed=run.seed,
            batch_size=train.batch_size,
            micro_batch_size=train.micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start=samples,
        )
        return training_batches(
            corpora.train, run.masking, micro_batches, workers=train.data_workers, pin_memory=pin
        )

    def evaluation() -> Iterator[Batch]:
        assert corpora.valid is not None
        return evaluation_batches(
            corpora.valid,
            run.masking,
            train.micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    return Data(training, evaluation if corpora.valid is not None else None)


def _peak_flops(engine: Engine) -> float:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "autocast": torch.bfloat16}
    return arithmetic.measured_peak_flops(
        engine.device, dtypes.get(engine.precision, torch.float32)
    )


def baselines(corpora: Corpora) -> dict[str, dict[str, float]]:
    """Return what a model that sees no context could reach on the held-out corpus, by metric.

    The entropy is that of the held-out text's own tokens, so no unigram model has a lower loss; the
    majority tag is its own commonest.
    """
    if corpora.valid is None:
        return {}
    tokens = np.zeros(2**16, dtype=np.int64)
    classes = {task: np.zeros(IGNORE_INDEX + 1, dtype=np.int64) for task in corpora.valid.tag_sets}
    for index in range(len(corpora.valid)):
        instance = corpora.valid[index]
        tokens += np.bincount(instance.input_ids, minlength=len(tokens))
        for task, counts in classes.items():
            counts += np.bincount(instance.tags[task], minlength=len(counts))
    special = corpora.valid.manifest.special_ids
    tokens[[special[name] for name in ("pad", "cls", "sep", "mask")]] = 0
    shares = tokens[tokens > 0] / tokens.sum()
    found = {"mlm/loss": {"unigram entropy": float(-(shares * np.log(shares)).sum())}}
    for task, counts in classes.items():
        if known := counts[:IGNORE_INDEX].sum():
            majority = float(counts[:IGNORE_INDEX].max() / known)
            found[f"{task}/accuracy"] = {"majority tag": majority}
    return found


def versions() -> dict[str, str]:
    """Return what a result was made with."""
    names = ("lert-ds", "torch", "deepspeed", "transformers")
    found = {name: importlib.metadata.version(name) for name in names}
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return {"python": platform.python_version(), **found}
