"""Corpus folders as what a training learns from: opened together, masked, held to each other."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from lert_ds import distributed
from lert_ds.data.loader import (
    AS_IT_COMES,
    Batching,
    evaluation_batches,
    training_batches,
)
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.rows import RowLengths
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import HELD_OUT, MANIFEST, Corpus
from lert_ds.errors import ConfigError, CorpusError
from lert_ds.kernels.apply import Kernels
from lert_ds.labels import IGNORE_INDEX
from lert_ds.model_source import resolve
from lert_ds.objective import Batch
from lert_ds.train.trainer import Data, TrainConfig
from lert_ds.training_data import DataFacts
from lert_ds.vocabulary_view import in_vocabulary_of


@dataclass(frozen=True)
class Corpora:
    """What a run trains and is evaluated on; a `TrainingData`."""

    train: Corpus
    valid: Corpus | None
    tokenizer_folder: Path
    """Whose tokenizer the ids are of."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Which tokens are predicted."""
    batching: Batching = AS_IT_COMES
    """What else a batch holds."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training manifests: the same instances in the same order."""
        content = [(folder / MANIFEST).read_bytes() for folder in self.train.folders]
        if self.tokenizer_folder != self.train.folders[0]:
            content.append(self.train.manifest.tokenizer_sha256.encode())
        return hashlib.sha256(b"".join(content)).hexdigest()

    @property
    def facts(self) -> DataFacts:
        """What the shape and the cost depend on."""
        manifest = self.train.manifest
        return DataFacts(
            length=manifest.length,
            vocabulary_size=manifest.vocabulary_size,
            pad_id=manifest.special_ids["pad"],
            tag_sets=manifest.tag_sets,
            instances=len(self.train),
            held_out=0 if self.valid is None else len(self.valid),
        )

    def in_vocabulary_of(self, model: str) -> "Corpora":
        """Return these in the ids of a model's tokenizer, whose vocabulary may have been pruned.

        Raises:
            ModelError: it is another tokenizer, or there is no such model.
        """
        folder = resolve(model)
        train = in_vocabulary_of(self.train, folder)
        if train is self.train:
            return self
        valid = None if self.valid is None else in_vocabulary_of(self.valid, folder)
        return Corpora(train, valid, folder, self.masking, self.batching)

    def for_kernels(self, kernels: Kernels) -> Self:
        """Return these in batches of one shape where each shape would be compiled anew."""
        if kernels.compile == "off":
            return self
        return replace(self, batching=replace(self.batching, keep_padding=True))

    def batches(self, train: TrainConfig, seed: int, micro_batch_size: int) -> Data:
        """Return this process's batches of a run.

        The held-out ones have rows as long as the last step's: no later position is trained yet.
        """

        def training(step: int, samples: int) -> Iterator[tuple[int, Batch]]:
            return training_batches(
                self.train,
                self.masking,
                self.micro_batches(train, seed, micro_batch_size, samples),
                lengths=RowLengths(train.length_borders(step, samples)),
                batching=self.batching,
                workers=train.data_workers,
                pin_memory=torch.cuda.is_available(),
            )

        def evaluation(step: int) -> Iterator[Batch]:
            return self.evaluation(micro_batch_size, train.length_at(max(step - 1, 0)))

        return Data(training, evaluation if self.valid is not None else None)

    def micro_batches(
        self, train: TrainConfig, seed: int, micro_batch_size: int, samples: int
    ) -> MicroBatches:
        """Return which instances this process takes after `samples` of the training."""
        return MicroBatches(
            corpus_size=len(self.train),
            seed=seed,
            batch_size=train.batch_size,
            micro_batch_size=micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start=samples,
        )

    def evaluation(self, micro_batch_size: int, length: int | None = None) -> Iterator[Batch]:
        """Return this process's held-out batches, in rows of `length` tokens where it is given."""
        assert self.valid is not None
        return evaluation_batches(
            self.valid,
            self.masking,
            micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            length=length,
            batching=self.batching,
        )

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return what a model that sees no context could reach on the held-out corpus, by metric.

        The entropy is that of the held-out text's own tokens, so no unigram model has a lower loss;
        the majority tag is its own commonest.
        """
        if self.valid is None:
            return {}
        tokens = np.zeros(2**16, dtype=np.int64)
        classes = {task: np.zeros(IGNORE_INDEX + 1, dtype=np.int64) for task in self.valid.tag_sets}
        for index in range(len(self.valid)):
            instance = self.valid[index]
            tokens += np.bincount(instance.input_ids, minlength=len(tokens))
            for task, counts in classes.items():
                counts += np.bincount(instance.tags[task], minlength=len(counts))
        special = self.valid.manifest.special_ids
        tokens[[special[name] for name in ("pad", "cls", "sep", "mask")]] = 0
        shares = tokens[tokens > 0] / tokens.sum()
        found = {"mlm/loss": {"unigram entropy": float(-(shares * np.log(shares)).sum())}}
        for task, counts in classes.items():
            if known := counts[:IGNORE_INDEX].sum():
                majority = float(counts[:IGNORE_INDEX].max() / known)
                found[f"{task}/accuracy"] = {"majority tag": majority}
        return found

    def verify(self, place: int, count: int) -> None:
        """Hash this process's share of the shards.

        Raises:
            CorpusError: a shard is not what its manifest says.
        """
        for corpus in (self.train, self.valid):
            if corpus is not None:
                corpus.verify(place, count)


def open_folders(
    corpus: Sequence[Path],
    corpus_valid: Sequence[Path],
    masking: MaskingConfig | None = None,
    batching: Batching = AS_IT_COMES,
) -> Corpora:
    """Return what to train and to evaluate on, by default the held-out folders of `corpus`.

    Raises:
        CorpusError: one is missing, cut short, or of another tokenizer, length or tag set.
    """
    if not corpus:
        raise ConfigError("corpus is empty; name one corpus folder or more")
    train = Corpus(corpus)
    if not len(train):
        raise CorpusError(f"{corpus[0]}: the corpus has no instance")
    held_out = [folder / HELD_OUT for folder in corpus]
    valid = corpus_valid or tuple(folder for folder in held_out if folder.is_dir())
    opened = Corpus(valid) if valid else None
    if opened is not None:
        # One corpus of all folders refuses whatever differs between any two of them.
        Corpus([corpus[0], *valid])
    return Corpora(train, opened, train.folders[0], masking or MaskingConfig(), batching)
