"""What every training shares once it starts: a planned run to weights and a summary.

    run folder → engine → trainer → weights, summary       before that: training_run.py

A command builds the objective; pre-training, distillation and recovery differ in nothing else.
"""

import importlib.metadata
import logging
import platform
import shutil
import subprocess
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lert_ds import arithmetic, distributed, model_dir
from lert_ds.config import dump
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import evaluation_batches, training_batches
from lert_ds.data.sampler import MicroBatches
from lert_ds.errors import CheckpointError
from lert_ds.fast_dropout import use_fast_dropout
from lert_ds.files import refuse_finished, write_json
from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.train.checkpoint import Checkpoints
from lert_ds.train.engine import Engine, join_processes, leave_processes
from lert_ds.train.optim import ParameterOptions
from lert_ds.train.tracking import WANDB_ID, Reporter
from lert_ds.train.trainer import Data, Trainer
from lert_ds.training_run import Arithmetic, Corpora, TrainingRun

logger = logging.getLogger(__name__)

FINISHED = "model/config.json"
"""What a finished run folder holds."""


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


def set_up_model(run: TrainingRun, model: PreTrainedModel) -> None:
    """Give a model the dropout and the checkpointing of a run, in place; no weight changes."""
    if run.fast_dropout and not torch.cuda.is_available():
        use_fast_dropout(model)
    if run.train.gradient_checkpointing:
        # The reentrant kind drops the gradients of hidden states that are used twice, as those of
        # intermediate matches are, without a word.
        model.gradient_checkpointing_enable({"use_reentrant": False})


def fit(
    run: TrainingRun,
    objective: nn.Module,
    corpora: Corpora,
    numbers: Arithmetic,
    *,
    options: Mapping[str, ParameterOptions] = types.MappingProxyType({}),
    lines: Mapping[str, Mapping[str, float]] = types.MappingProxyType({}),
) -> Trained:
    """Train `objective` to the end; all processes must call it.

    Args:
        run: The run's configuration.
        objective: What is trained.
        corpora: On what.
        numbers: The run's arithmetic.
        options: Name of a submodule to what differs for its parameters.
        lines: Metric to what else is known of it (a teacher's value), for the report.

    Raises:
        CheckpointError: the output folder's checkpoint is of another corpus or layout.
        NonFiniteError: the loss or a gradient is inf or nan.
    """
    started = time.time()
    engine = Engine(objective, run.optimizer, numbers.tree, options)
    checkpoints = Checkpoints(run.output / "checkpoints", run.train.keep_checkpoints)
    reporter = Reporter(run.tracking, run.output, run.train.steps, dump(run), distributed.is_main())
    trainer = Trainer(
        engine,
        objective,  # type: ignore[arg-type]
        data_of(run, corpora),
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
        "baselines": _joined(baselines(corpora), lines),
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


def data_of(run: TrainingRun, corpora: Corpora) -> Data:
    """Return this process's batches of a run."""
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


def _joined(*tables: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    joined: dict[str, dict[str, float]] = {}
    for table in tables:
        for name, values in table.items():
            joined.setdefault(name, {}).update(values)
    return joined


def write_model(
    run: TrainingRun,
    corpora: Corpora,
    model_config: LertConfig,
    trained: Trained,
    *,
    prefix: str,
) -> None:
    """Write the model folder and the summary of a run, on the main process.

    Args:
        run: The run's configuration, resolved.
        corpora: What it trained on.
        model_config: The shape of the model.
        trained: Its weights and summary.
        prefix: What the objective calls the model: its parameters' names open with it and a dot.
    """
    start = f"{prefix}."
    weights = {
        name.removeprefix(start): weight
        for name, weight in trained.weights.items()
        if name.startswith(start)
    }
    model = LertForPreTraining(model_config)
    # What DeepSpeed trained is every parameter once; the tied ones follow the word embeddings.
    model.load_state_dict(model.state_dict() | weights)
    model.tie_weights()
    record = {**trained.summary, "config": dump(run), "corpus": corpora.fingerprint}
    folder = run.output / "model"
    model_dir.save(model, corpora.tokenizer_folder, folder, record)
    write_json(run.output / "summary.json", {**trained.summary, "model": str(folder)})
    logger.info("model: %s", folder)


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
