"""A task's files as what a training learns from and is judged on.

data/ocnli/train.50k.json ─read→ examples ─encode→ features ─by length→ batches
          dev.json        ─read→ …                          → best weights, scores
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lert_ds import distributed, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError, UserError
from lert_ds.finetune import batches, readers
from lert_ds.finetune.examples import Example
from lert_ds.finetune.features import Feature
from lert_ds.finetune.kinds import KINDS, TaskJudge
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.tasks import SPLITS, Split, Task, find_task
from lert_ds.train.trainer import Data, TrainConfig
from lert_ds.training_data import DataFacts

logger = logging.getLogger(__name__)

EVALUATION_ROWS = 32
"""Features a batch of an evaluation has."""


@dataclass(frozen=True)
class Part:
    """The examples of a split, read and encoded."""

    examples: Sequence[Any]
    features: Sequence[Feature]


@dataclass(frozen=True)
class TaskData:
    """A `TrainingData`: a task in the ids of one tokenizer."""

    task: Task
    settings: TaskConfig
    tokenizer_folder: Path
    pad_id: int
    vocabulary_size: int
    max_length: int
    train: Part
    dev: Part
    test: Part | None
    files: dict[str, str]
    """Split to the file that it was read from."""
    fingerprint: str
    """SHA-256 of the files, the tokenizer and the settings."""

    @property
    def facts(self) -> DataFacts:
        """What the shape and the cost depend on."""
        rows = self.train.features or self.dev.features
        longest = max(len(feature.input_ids) for feature in rows)
        return DataFacts(
            longest, self.vocabulary_size, self.pad_id, {}, len(self.train.features),
            len(self.dev.features),
        )  # fmt: skip

    def batches(self, train: TrainConfig, seed: int, micro_batch_size: int) -> Data:
        """Return this process's batches of a run."""
        lengths = np.array([len(feature.input_ids) for feature in self.train.features])
        order = batches.LikeLengths(lengths, train.batch_size, seed)
        rank, world_size = distributed.rank(), distributed.world_size()
        return Data(
            lambda _step, samples: batches.training_batches(
                self.train.features, order, micro_batch_size, self.pad_id,
                start=samples, rank=rank, world_size=world_size,
            ),
            lambda _step: self.evaluation(self.dev, rank=rank, world_size=world_size),
            lambda: self.judge(self.dev),
        )  # fmt: skip

    def evaluation(self, part: Part, *, rank: int = 0, world_size: int = 1) -> Any:
        """Return a process's batches of a split."""
        return batches.evaluation_batches(
            part.features, EVALUATION_ROWS, self.pad_id, rank=rank, world_size=world_size
        )

    def judge(self, part: Part) -> TaskJudge:
        """Return what judges the answers to a split."""
        kind = KINDS[self.task.kind]
        return kind.judge(self.task, self.settings, part.examples, part.features)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return what the commonest class reaches."""
        if self.task.kind != "classification":
            return {}
        counts = Counter(example.label for example in self.dev.examples)
        return {"accuracy": {"commonest class": max(counts.values()) / len(self.dev.examples)}}

    def verify(self, place: int, count: int) -> None:
        """Pass: the files were read whole when they were opened."""


def open_task(
    settings: TaskConfig, tokenizer_folder: Path, config: LertConfig, *, to_train: bool = True
) -> TaskData:
    """Return a task in the ids of a model's tokenizer.

    Args:
        settings: Which task, and where its files are.
        tokenizer_folder: A model folder.
        config: Of the model that will read it: its positions limit the rows.
        to_train: Whether it is trained on; to evaluate, `train` stays empty, and no file of it is
            needed where there is one for dev.

    Raises:
        UserError: there is no such task or file, or something in a file is wrong.
    """
    task = find_task(settings.name)
    found = find_files(settings, task)
    if not to_train and "dev" in found:
        found.pop("train", None)
    elif "train" not in found:
        raise _missing(settings, task, "train")
    examples = read_examples(task, settings, found)
    max_length = min(settings.max_length, config.max_position_embeddings)
    tokenizer = tokenizer_files.load(tokenizer_folder)
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{tokenizer_folder}: its tokenizer has {len(tokenizer)} pieces, its model embeds "
            f"{config.vocab_size}; they are not of one model"
        )

    if not to_train:
        examples["train"] = []

    def part(split: Split) -> Part:
        features = KINDS[task.kind].encode(examples[split], tokenizer, settings, max_length)
        return Part(examples[split], features)

    parts: dict[Split, Part] = {split: part(split) for split in examples}
    return TaskData(
        task=task,
        settings=settings,
        tokenizer_folder=tokenizer_folder,
        pad_id=tokenizer.pad_token_id,
        vocabulary_size=config.vocab_size,
        max_length=max_length,
        train=parts["train"],
        dev=parts["dev"],
        test=parts.get("test"),
        files={split: path.name for split, path in found.items()},
        fingerprint=_fingerprint(settings, max_length, found, tokenizer),
    )


def read_examples(
    task: Task, settings: TaskConfig, files: Mapping[Split, Path]
) -> dict[Split, list[Any]]:
    """Return the examples of files by split; what `dev` has no file for is held out of `train`.

    Raises:
        UserError: something in a file is wrong, or one has no example.
    """
    examples = {split: _read(task, path, split) for split, path in files.items()}
    if "dev" not in examples:
        examples["train"], examples["dev"] = _held_out(examples["train"], settings, files["train"])
    for split, some in examples.items():
        if not some:
            path = files[split if split in files else "train"]
            raise UserError(f"{path}: there is no example for {split} in it; give a file with some")
    return examples


def folder_of(settings: TaskConfig, task: Task) -> Path:
    """Return the folder of a task's files: `data`, or one in it that is named after the task.

    Raises:
        UserError: there is no such folder.
    """
    for name in (task.name, *task.aliases):
        if (settings.data / name).is_dir():
            return settings.data / name
    if settings.data.is_dir():
        return settings.data
    raise UserError(
        f"task.data = {settings.data}: there is no such folder; name the one that has the files "
        f"of {task.title} (docs/tasks.md says where to get them)"
    )


def find_files(settings: TaskConfig, task: Task) -> dict[Split, Path]:
    """Return the file of each split that is there.

    Raises:
        UserError: a file that was asked for is not there.
    """
    folder = folder_of(settings, task)
    found: dict[Split, Path] = {}
    for split in SPLITS:
        given: Path | None = getattr(settings, split)
        if given is not None:
            places = [folder / given, given]
            path = next((place for place in places if place.is_file()), None)
            if path is None:
                raise UserError(f"task.{split} = {given}: no such file, in {folder} neither")
            found[split] = path
            continue
        names = [name + ending for name in task.files[split] for ending in ("", ".gz")]
        there = (folder / name for name in names if (folder / name).is_file())
        if (path := next(there, None)) is not None:
            found[split] = path
    return found


def _missing(settings: TaskConfig, task: Task, split: Split) -> UserError:
    folder = folder_of(settings, task)
    names = " or ".join(task.files[split])
    return UserError(
        f"{folder}: there is no {names} of {task.title} in it; put it there, or name the file with "
        f"task.{split}="
    )


def _read(task: Task, path: Path, split: str) -> list[Any]:
    examples: list[Any]
    if task.kind == "spans":
        examples = readers.read_spans(path)
        if split == "train":
            readers.refuse_unplaced(path, examples)
    elif task.kind == "entities":
        examples = readers.read_entities(path, task.labels)
    else:
        assert task.layout is not None
        examples = readers.read_texts(path, task.labels, task.layout)
    logger.info("%s: %s, %d examples from %s", task.title, split, len(examples), path)
    return examples


def _held_out(
    examples: Sequence[Example], settings: TaskConfig, path: Path
) -> tuple[list[Example], list[Example]]:
    if not settings.held_out:
        raise ConfigError(
            "task.held_out = 0, and there is no dev file to choose the best weights on; name one "
            "with task.dev=, or hold out a share"
        )
    every = max(2, round(1 / settings.held_out))
    dev = [example for number, example in enumerate(examples) if number % every == every - 1]
    train = [example for number, example in enumerate(examples) if number % every != every - 1]
    logger.warning(
        "%s: there is no dev file, so every %d. of its examples is held out: %d",
        path,
        every,
        len(dev),
    )
    return train, dev


def _fingerprint(
    settings: TaskConfig, max_length: int, files: dict[Split, Path], tokenizer: Any
) -> str:
    told = hashlib.sha256()
    for split, path in files.items():
        told.update(f"{split} {path.name}\n".encode())
        told.update(path.read_bytes())
    numbers = settings.model_dump(
        include={"name", "held_out", "stride", "question_length", "answer_length"}
    )
    told.update(f"{sorted(numbers.items())} {max_length}\n".encode())
    told.update("\n".join(tokenizer_files.pieces(tokenizer)).encode())
    return told.hexdigest()
