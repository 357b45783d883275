"""Teachers: frozen models that are read from a folder and asked for what a student shall learn."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from distill.int8_teacher import to_int8
from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError
from lert_ds.evaluation import evaluate
from lert_ds.kernels import products
from lert_ds.labels import TagSets
from lert_ds.machine import multiplies_bf16
from lert_ds.model_surgery import Cut, cut, cut_config
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.train.engine import partition_frozen
from lert_ds.training_data import DataFacts
from lert_ds.vocabulary_view import places

logger = logging.getLogger(__name__)

TeacherPrecision = Literal["auto", "fp32", "bf16", "int8"]


@dataclass(frozen=True)
class Teacher:
    """A frozen model and how much its word counts.

    Not a module, and so in no module: an engine that is given the student neither casts, moves,
    partitions nor saves it, and `train()` never reaches its dropout.
    """

    source: str
    model: PreTrainedModel
    weight: float


def check_teacher(
    source: str, facts: DataFacts, tokenizer: Path | None, tasks: Iterable[str]
) -> LertConfig:
    """Return a teacher's configuration, having held it to what the student will read and learn.

    Where the student's vocabulary was pruned, it is that of the teacher with the same pieces left.

    Args:
        source: Model folder or name on the hub.
        facts: Of the corpus.
        tokenizer: Folder whose tokenizer the ids are of; None where no corpus is there yet.
        tasks: Linguistic tasks that the teacher is asked about.

    Raises:
        ModelError: it is no model, has another tokenizer, too few positions, or lacks a head.
    """
    folder = model_dir.resolve(source)
    config = model_dir.read_config(folder)
    if tokenizer is not None:
        config = cut_config(config, _vocabulary_cut(source, tokenizer))
    if config.max_position_embeddings < facts.length:
        raise ModelError(
            f"{source}: the teacher has {config.max_position_embeddings} positions, but the corpus "
            f"has instances of {facts.length} tokens; prepare the corpus with "
            f"max_length={config.max_position_embeddings}"
        )
    for task in tasks:
        tags = (config.tag_sets or {}).get(task)
        if tags is None:
            raise ModelError(
                f"{source}: the teacher has no {task.upper()} head to learn from; set "
                f"distillation.{task}=0 (the student still learns it from the corpus)"
            )
        if list(tags) != list(facts.tag_sets[task]):
            raise ModelError(
                f"{source}: the teacher's {task.upper()} head has other tags than the corpus; set "
                f"distillation.{task}=0, or annotate the corpus as the teacher's was"
            )
    return config


def _vocabulary_cut(source: str, tokenizer: Path) -> Cut:
    ids = places(model_dir.resolve(source), tokenizer)
    return Cut(pieces=None if ids is None else torch.tensor(ids))


def load_teacher(
    source: str, tokenizer: Path, cls: type[PreTrainedModel] = LertForPreTraining
) -> PreTrainedModel:
    """Return the teacher of a folder or hub name, frozen, in fp32 on the host.

    Args:
        source: Model folder or name on the hub.
        cls: With the heads that it is to be asked.
        tokenizer: Folder whose tokenizer the student has; the teacher loses the pieces that it
            lacks, and says the probabilities of the others as if they were all there are.

    Raises:
        ModelError: it cannot be read, or lacks a head.
    """
    model: PreTrainedModel
    model, report = model_dir.load(source, cls)
    missing = [name for name in report.random if not name.startswith("cls.predictions.output_")]
    if any(name.startswith("cls.") for name in missing):
        raise ModelError(
            f"{source}: the teacher has no MLM head (no weights for {missing[0]}), so it has no "
            "logits to learn from; name a model that was saved with its pre-training heads"
        )
    if any(name.startswith(("classifier.", "qa_outputs.")) for name in missing):
        raise ModelError(
            f"{source}: the teacher has no head for the task (no weights for {missing[0]}), so it "
            "has nothing to teach; fine-tune it first"
        )
    if missing:
        raise ModelError(
            f"{source}: the teacher lacks weights for {missing[0]}; copy or download it again"
        )
    if (shape := _vocabulary_cut(source, tokenizer)).pieces is not None:
        model = cut(model, shape)
    model.requires_grad_(False)
    model.eval()
    return model


def precision_on(device: torch.device, precision: TeacherPrecision) -> str:
    """Return the precision that a teacher has on a device: fp32, bf16 or int8."""
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bf16(device) else "fp32"


def place_teacher(
    model: PreTrainedModel,
    device: torch.device,
    precision: TeacherPrecision,
    *,
    partitioned: bool,
    compiled: bool = False,
    onednn: bool = False,
) -> PreTrainedModel:
    """Move a teacher to where it works: cast, on the device, in pieces a process where asked.

    Args:
        model: Frozen, on the host.
        device: Where it works.
        precision: In which.
        partitioned: Keep a piece of it a process.
        compiled: Compile each layer of its encoder when it is first asked.
        onednn: Multiply by oneDNN what is in float32 on a processor, and not compiled.

    Raises:
        ConfigError: int8 where there is no kernel for it.
    """
    found = precision_on(device, precision)
    if found == "int8" and device.type != "cpu":
        raise ConfigError(
            f"teacher_precision = int8: its kernels are for a CPU, and this trains on "
            f"{device.type}; say bf16"
        )
    model = model.to(device, torch.bfloat16 if found == "bf16" else torch.float32)
    if found == "int8":
        to_int8(model)
    if onednn and device.type == "cpu" and not compiled:
        products.use_onednn(model)
    if compiled:
        for layer in model.get_submodule("bert.encoder").layer:
            layer.compile(dynamic=True)
    if not partitioned:
        return model
    partitioned_model = partition_frozen(model)
    assert isinstance(partitioned_model, PreTrainedModel)
    return partitioned_model


def teacher_lines(
    teachers: Sequence[Teacher], batches: Sequence[Iterable[Batch]], tag_sets: TagSets
) -> dict[str, dict[str, float]]:
    """Return what each teacher itself reaches on held-out batches: metric to name to value.

    All processes must call it.

    Args:
        teachers: The teachers.
        batches: The held-out batches of this process, once a teacher.
        tag_sets: Linguistic tasks to evaluate, where a teacher has a head of these very tags.
    """
    found: dict[str, dict[str, float]] = {}
    for number, (teacher, its_batches) in enumerate(zip(teachers, batches, strict=True), start=1):
        name = "teacher" if len(teachers) == 1 else f"teacher {number}"
        for metric, value in evaluate(_pretrained(teacher), its_batches, tag_sets).items():
            found.setdefault(metric, {})[name] = value
        logger.info(
            "%s %s on the held-out corpus: %s",
            name, teacher.source,
            "  ".join(f"{key} {values[name]:.4g}" for key, values in found.items()),
        )  # fmt: skip
    return found


def _pretrained(teacher: Teacher) -> LertForPreTraining:
    assert isinstance(teacher.model, LertForPreTraining)
    return teacher.model
