"""What every training shares once it starts: a planned run to weights and a summary.

    run folder → engine → trainer → weights, summary       before that: training_run.py

A command builds the objective; pre-training, distillation and recovery differ in nothing else.
"""

import importlib.metadata
import logging
import platform
import subprocess
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lert_ds import arithmetic, distributed, model_dir
from lert_ds.config import differences, dump
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import CheckpointError, UserError
from lert_ds.files import write_json
from lert_ds.kernels.apply import Kernels, choose, use_kernels
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.redaction import redact_tree
from lert_ds.train import deepspeed_config
from lert_ds.train.best import BestWeights
from lert_ds.train.checkpoint import Checkpoints
from lert_ds.train.engine import Engine, device
from lert_ds.train.interruption import Interruption
from lert_ds.train.optim import ParameterOptions
from lert_ds.train.peers import Peers
from lert_ds.train.tracking import Reporter
from lert_ds.train.trainer import Surroundings, Trainer
from lert_ds.train.watchdog import Watchdog
from lert_ds.training_data import TrainingData
from lert_ds.training_run import Arithmetic, CorpusRun, TrainingRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a training leaves, on the main process; elsewhere `weights` is empty."""

    weights: dict[str, Tensor]
    """Parameters of the objective by name, whole, fp32, on the host."""
    summary: dict[str, Any]


def set_up_model(
    run: TrainingRun, model: PreTrainedModel, *, lengths_vary: bool = False
) -> Kernels:
    """Give a model the kernels and the checkpointing of a run, in place; no weight changes.

    Args:
        run: The run's configuration.
        model: Not yet under an engine.
        lengths_vary: Whether its batches come in many lengths.

    Raises:
        ConfigError: a kernel that is named cannot run here.
    """
    stage, precision = deepspeed_config.stage_and_precision(run.deepspeed)
    kernels = choose(
        run.kernels,
        device(),
        stage=stage,
        half=precision != "fp32",
        lengths_vary=lengths_vary,
        parts_documents=isinstance(run, CorpusRun) and not run.attend_across_documents,
    )
    use_kernels(model, kernels)
    logger.info("kernels: %s", kernels.describe())
    if run.train.gradient_checkpointing:
        # The reentrant kind drops the gradients of hidden states that are used twice, as those of
        # intermediate matches are, without a word.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return kernels


def fit(
    run: TrainingRun,
    objective: nn.Module,
    data: TrainingData,
    numbers: Arithmetic,
    peers: Peers,
    *,
    best_by: str | None = None,
    options: Mapping[str, ParameterOptions] = types.MappingProxyType({}),
    lines: Mapping[str, Mapping[str, float]] = types.MappingProxyType({}),
) -> Trained | None:
    """Train `objective` to the end, or until something asks to stop; all processes must call it.

    Returns:
        What was trained; None where it was stopped before the end, with a checkpoint.

    Args:
        run: The run's configuration.
        objective: What is trained.
        data: On what.
        numbers: The run's arithmetic.
        peers: The processes, as `prepared` gives them.
        best_by: Metric of the evaluation; what is returned are the weights with its highest value,
            not the last.
        options: Name of a submodule to what differs for its parameters.
        lines: Metric to what else is known of it (a teacher's value), for the report.

    Raises:
        CheckpointError: the output folder's checkpoint is of another corpus or model.
        NonFiniteError: the loss or a gradient is inf or nan.
    """
    started = time.time()
    engine = Engine(objective, run.optimizer, numbers.tree, options)
    reporter = Reporter(run.tracking, run.output, run.train.steps, dump(run), distributed.is_main())
    with closing(reporter), _watched(run, reporter, peers) as (watchdog, interruption):
        checkpoints = Checkpoints(
            run.output / "checkpoints",
            peers,
            keep=run.train.keep_checkpoints,
            keep_every=run.train.keep_every,
            background=run.train.save_in_background,
        )
        best = None if best_by is None else BestWeights(run.output, best_by, peers)
        trainer = Trainer(
            engine,
            objective,  # type: ignore[arg-type]
            data.batches(run.train, run.seed, numbers.micro_batch_size),
            run.train,
            run.schedule,
            Surroundings(reporter, checkpoints, peers, interruption, watchdog, best),
            seed=run.seed,
            flops_per_token=numbers.flops_per_token_at,
            peak_flops=peak_flops(engine),
        )
        state = {"corpus": data.fingerprint, "seed": run.seed, "config": redact_tree(dump(run))}
        _resume(run, trainer, checkpoints, reporter, state)
        valid = trainer.fit(state)
        if trainer.stopped_by is not None:
            return None
        if best is None or best.best is None:
            weights, chosen = engine.full_weights(), trainer.step
        else:
            weights, (chosen, valid) = best.read(), best.best
            best.remove()
    summary = {
        "steps": trainer.step,
        "chosen_step": chosen,
        "samples": trainer.samples,
        "parameters": numbers.parameters,
        "processes": distributed.world_size(),
        "seconds": round(time.time() - started, 1),
        "valid": valid,
        "baselines": _joined(data.baselines(), lines),
        "versions": versions(),
    }
    return Trained(weights, summary)


@contextmanager
def _watched(
    run: TrainingRun, reporter: Reporter, peers: Peers
) -> Iterator[tuple[Watchdog, Interruption]]:
    """Watch over the body: signals stop it in good order, hangs and failures end all processes."""
    watchdog = Watchdog(run.train.timeout_seconds, peers, reporter.record)
    with Interruption(run.train.stop_before_hours) as interruption:
        watchdog.start()
        try:
            yield watchdog, interruption
        except BaseException as error:
            code = 2 if isinstance(error, UserError) else 1
            watchdog.fail(f"{type(error).__name__}: {error}", code)
            error.add_note(f"on {watchdog.whereabouts()}")
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                error.add_note(
                    "out of memory: lower train.micro_batch_size (the batch stays), then "
                    "train.gradient_checkpointing=true, then a higher ZeRO stage"
                )
            raise
        watchdog.close()


def _resume(
    run: TrainingRun,
    trainer: Trainer,
    checkpoints: Checkpoints,
    reporter: Reporter,
    state: dict[str, Any],
) -> None:
    """Go on from the newest whole checkpoint, where there is one, and tell how this differs."""
    found = checkpoints.newest(run.resume if run.resume.startswith("step-") else None)
    if found is None:
        return
    saved = trainer.resume(found.tag)
    for line in found.skipped:
        reporter.event(
            trainer.step, f"passed over {line}; set aside as skipped-{line.partition(':')[0]}"
        )
    for key, meaning in (("corpus", "another corpus"), ("seed", "another seed")):
        if saved.get(key) != state[key]:
            raise CheckpointError(
                f"{checkpoints.folder / found.tag}: it was trained with {meaning}; go on with "
                "that one, or start over with overwrite=true"
            )
    if (before := saved["config"]["optimizer"]["name"]) != run.optimizer.name:
        raise CheckpointError(
            f"{checkpoints.folder / found.tag}: it was trained with optimizer.name = {before}, not "
            f"{run.optimizer.name}; go on with that one, or start over with overwrite=true"
        )
    if changes := differences(saved["config"], state["config"]):
        reporter.event(trainer.step, f"goes on with other settings: {'; '.join(changes)}")


def peak_flops(engine: Engine) -> float:
    """Return the operations a second of a large matrix product in the engine's precision."""
    # Of fp16 that of fp32 on a processor: without instructions for it, a product takes 2.5 s.
    half = torch.float16 if engine.device.type == "cuda" else torch.float32
    dtypes = {"bf16": torch.bfloat16, "fp16": half, "autocast": torch.bfloat16}
    return arithmetic.measured_peak_flops(
        engine.device, dtypes.get(engine.precision, torch.float32)
    )


def _joined(*tables: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    joined: dict[str, dict[str, float]] = {}
    for table in tables:
        for name, values in table.items():
            joined.setdefault(name, {}).update(values)
    return joined


def write_model(
    run: TrainingRun,
    data: TrainingData,
    model_config: LertConfig,
    trained: Trained,
    *,
    prefix: str,
    cls: type[PreTrainedModel] = LertForPreTraining,
) -> None:
    """Write the model folder and the summary of a run, on the main process.

    Args:
        run: The run's configuration, resolved.
        data: What it trained on.
        model_config: The shape of the model.
        trained: Its weights and summary.
        prefix: What the objective calls the model: its parameters' names open with it and a dot.
        cls: Of `lert_ds.modeling_lert`.
    """
    start = f"{prefix}."
    weights = {
        name.removeprefix(start): weight
        for name, weight in trained.weights.items()
        if name.startswith(start)
    }
    model = cls(model_config)
    # What DeepSpeed trained is every parameter once; the tied ones follow the word embeddings.
    model.load_state_dict(model.state_dict() | weights)
    model.tie_weights()
    record = {**trained.summary, "config": dump(run), "corpus": data.fingerprint}
    folder = run.output / "model"
    model_dir.save(model, data.tokenizer_folder, folder, record)
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
