"""What a training run is before it starts: its configuration, its corpora, and its arithmetic.

configuration → corpora → batch, memory, operations        all that --dry-run tells
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from lert_ds import arithmetic
from lert_ds.config import Config, Paths
from lert_ds.configuration_lert import LertConfig
from lert_ds.corpora import Corpora, open_folders
from lert_ds.data.loader import Batching
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.rows import check_length
from lert_ds.data.sampler import solve_micro_batch_size
from lert_ds.errors import ConfigError
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.train import deepspeed_config
from lert_ds.train.batch_schedule import BatchSchedule, Phase
from lert_ds.train.optim import OptimizerConfig
from lert_ds.train.schedule import ScheduleConfig
from lert_ds.train.tracking import TrackingConfig
from lert_ds.train.trainer import TrainConfig
from lert_ds.training_data import DataFacts


class TrainingRun(Config):
    """The keys that every training has."""

    output: Path
    """Run folder to write: config.json, metrics.jsonl, checkpoints, model."""
    deepspeed: Path = Path("ds_configs/zero1_bf16.json")
    """DeepSpeed's JSON: ZeRO stage, offload, precision, communication."""
    seed: int = Field(20221110, ge=0, lt=2**63)
    """Of the first weights, the order of instances, their masks and dropout."""
    resume: str = Field("auto", pattern=r"^(auto|never|step-\d+)$")
    """auto: go on from the newest whole checkpoint in the output folder; never: start from step 0;
    step-N: go back to that one, and set the newer ones aside."""
    overwrite: bool = False
    """Replace what the output folder holds, finished or not."""
    push_to_hub: str | None = Field(None, pattern=r"^[\w.-]+(/[\w.-]+)?$")
    """Name on the Hugging Face hub, owner/name, to upload the result to; a new one is private."""
    kernels: KernelsConfig = KernelsConfig()
    """What computes attention, norms, activation and loss; it changes the speed alone."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the numbers go."""
    train: TrainConfig
    """Steps, batch, learning rate, how often to look."""


R = TypeVar("R", bound=TrainingRun)


class CorpusRun(TrainingRun):
    """The keys that every training on masked text has."""

    corpus: Paths
    """Corpus folder, or a list of them, to train on."""
    corpus_valid: Paths = ()
    """Corpus folders to evaluate on; by default the held_out folders of the corpus."""
    masking: MaskingConfig = MaskingConfig()
    """Which tokens are predicted."""
    attend_across_documents: bool = True
    """Whether tokens see those of other documents that were packed into the same instance."""

    def masked_share(self, length: int) -> float:
        """Return which share of the tokens of an instance is predicted."""
        return self.masking.budget(length - 2, length) / length


@dataclass(frozen=True)
class Arithmetic:
    """The numbers that follow from a configuration before anything is trained."""

    shape: arithmetic.Shape
    parameters: int
    masked_share: float
    micro_batch_size: int
    """Instances a forward pass: the largest divisor of a process's share up to the run's."""
    accumulation: int
    """Of the full batch."""
    tree: dict[str, Any]
    """DeepSpeed's resolved configuration."""
    flops_per_token: float
    """In rows as long as an instance."""
    memory: arithmetic.Memory
    length: int
    """Tokens of the longest instance."""
    schedule: BatchSchedule

    def flops_per_token_at(self, step: int) -> float:
        """Return the operations a token at a step, whose rows may be shorter than an instance.

        What a distillation's teacher adds is taken to change in proportion.
        """

        def formula(length: int) -> float:
            return arithmetic.flops_per_token(self.shape, length, self.masked_share)

        length = self.schedule.length_at(step) or self.length
        return self.flops_per_token * (formula(length) / formula(self.length))


def open_corpora(run: CorpusRun) -> Corpora:
    """Return the corpora of a run.

    Raises:
        CorpusError: one is missing, cut short, or of another tokenizer, length or tag set.
    """
    batching = Batching(part_documents=not run.attend_across_documents)
    return open_folders(run.corpus, run.corpus_valid, run.masking, batching)


def with_steps(run: R, instances: int | None) -> R:
    """Return a run with its steps, where it says epochs, rounded up.

    Args:
        run: Any training.
        instances: Of one epoch; None where they are not known yet.

    Raises:
        ConfigError: epochs of an unknown length.
    """
    train = run.train
    if not train.epochs:
        return run
    if instances is None:
        raise ConfigError(
            f"train.epochs = {train.epochs:g}: the corpus is not there yet, so its length is not "
            "known; say train.steps"
        )
    steps = train.steps_for(math.ceil(train.epochs * instances))
    return run.model_copy(
        update={"train": train.model_copy(update={"steps": steps, "epochs": 0.0})}
    )


def shape_of(config: LertConfig) -> arithmetic.Shape:
    """Return what the operations and the memory of a model depend on."""
    layers = range(config.num_hidden_layers)
    heads = sum(config.heads_of(number) for number in layers)
    return arithmetic.Shape(
        layers=len(layers),
        hidden_size=config.hidden_size,
        attention_size=heads * config.hidden_size / config.num_attention_heads / len(layers),
        intermediate_size=sum(config.intermediate_size_of(n) for n in layers) / len(layers),
        vocabulary_size=config.vocab_size,
    )


def work_out(
    run: TrainingRun,
    model_config: LertConfig,
    parameters: int,
    length: int,
    processes: int,
    masked_share: float,
) -> Arithmetic:
    """Return the batch, the operations and the memory of training a model on `processes`.

    Args:
        run: The training.
        model_config: The shape of the model.
        parameters: How many it has.
        length: Tokens of the longest instance.
        processes: How many train.
        masked_share: Of the tokens, those whose place asks the whole vocabulary; 0 for a task.

    Raises:
        ConfigError: a batch or a length does not divide, or DeepSpeed's JSON contradicts the run.
    """
    train = run.train
    _check_schedule(train, length, of_task=not masked_share)
    micro_batch_size = solve_micro_batch_size(
        train.batch_size, train.micro_batch_size, processes, train.batch_sizes
    )
    accumulation = train.batch_size // (micro_batch_size * processes)
    tree = deepspeed_config.resolve(
        run.deepspeed,
        {
            "train_batch_size": train.batch_size,
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": train.gradient_clipping,
        },
    )
    shape = shape_of(model_config)
    memory = arithmetic.memory_per_process(
        shape,
        parameters,
        stage=deepspeed_config.stage(tree),
        precision=deepspeed_config.precision(tree),
        processes=processes,
        micro_batch_size=micro_batch_size,
        length=length,
        masked_share=masked_share,
        checkpointing=train.gradient_checkpointing,
        offload_optimizer=deepspeed_config.offloads_optimizer(tree),
        offload_parameters=deepspeed_config.offloads_parameters(tree),
    )
    flops = arithmetic.flops_per_token(shape, length, masked_share)
    return Arithmetic(
        shape, parameters, masked_share, micro_batch_size, accumulation, tree, flops, memory,
        length, train,
    )  # fmt: skip


def _check_schedule(train: TrainConfig, length: int, *, of_task: bool) -> None:
    for key in ("batch_warmup", "lengths"):
        if of_task and getattr(train, key):
            raise ConfigError(
                f"train.{key} is for training on a corpus; leave it out where a task's examples, "
                "batched by their length, are trained on"
            )
    for _, tokens in train.lengths:
        check_length(tokens, length)


def explain(run: TrainingRun, numbers: Arithmetic, facts: DataFacts, processes: int) -> str:
    """Return the arithmetic of a run as text, for --dry-run."""
    train, memory = run.train, numbers.memory
    phases = train.phases(train.steps)
    samples = train.samples_before(train.steps)
    tokens = samples * facts.length
    operations = facts.length * sum(
        phase.samples * numbers.flops_per_token_at(phase.first) for phase in phases
    )
    gib = 2**30
    if facts.instances is None:
        corpus = f"not there yet; reckoned with instances of {facts.length} tokens"
        epochs = ""
    else:
        corpus = f"{facts.instances:,} instances of {facts.length} tokens"
        epochs = f" = {samples / facts.instances:,.1f} epochs"
    rows = [
        ("parameters", f"{numbers.parameters:,}"),
        (
            "batch",
            f"{train.batch_size:,} instances = {numbers.micro_batch_size} a micro-batch × "
            f"{numbers.accumulation} accumulated × {processes} processes"
            + (
                ""
                if numbers.micro_batch_size == train.micro_batch_size
                else f" (train.micro_batch_size = {train.micro_batch_size} does not divide)"
            ),
        ),
        ("corpus", corpus),
        ("held out", f"{facts.held_out:,} instances" if facts.held_out else "none"),
        ("steps", f"{train.steps:,}{epochs}"),
        ("tokens", f"{tokens:,}"),
        (
            "operations",
            f"{operations / tokens:.3g} a token, {operations:.3g} in all",
        ),
        (
            "memory a process",
            f"{memory.device_total / gib:.2f} GiB = weights {memory.weights / gib:.2f} + gradients "
            f"{memory.gradients / gib:.2f} + optimizer {memory.optimizer / gib:.2f} + activations "
            f"about {memory.activations / gib:.2f}; on the host {memory.host / gib:.2f}",
        ),
    ]
    if numbers.masked_share:
        rows.insert(4, ("masked", f"{numbers.masked_share:.1%} of the tokens"))
    if train.batch_warmup or train.lengths:
        told = [_explain_phase(phase, numbers, processes) for phase in phases]
        rows[2:2] = itertools.zip_longest(["phases"], [*told, *_not_reached(train)], fillvalue="")
    return "\n".join(f"{name:<17} {text}" for name, text in rows)


def _explain_phase(phase: Phase, numbers: Arithmetic, processes: int) -> str:
    length = phase.length or numbers.length
    rows = phase.batch_size * (numbers.length // length)
    accumulation = phase.batch_size // (numbers.micro_batch_size * processes)
    return (
        f"to step {phase.stop:,}: {phase.batch_size:,} instances a step as {rows:,} rows of "
        f"{length}, {accumulation} accumulated"
    )


def _not_reached(train: TrainConfig) -> Iterator[str]:
    for key in ("batch_warmup", "lengths"):
        late = [list(pair) for pair in getattr(train, key) if pair[0] >= train.steps]
        if late:
            yield f"the run ends before {', '.join(map(str, late))} of train.{key}"
