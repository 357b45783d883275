"""The text of a pruning: samples of the corpus to prune by, held-out batches to measure on."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lert_ds import corpora, distributed
from lert_ds.data.loader import evaluation_batches, training_batches
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError, ModelError
from lert_ds.evaluation import Missing
from lert_ds.labels import TagSets
from lert_ds.objective import Batch
from lert_ds.vocabulary_view import in_vocabulary_of
from prune.prune_config import PruneRun

BATCH_SIZE = 16
"""Instances a batch where nothing depends on it."""
LAYER_INSTANCES = 128
"""Enough to rank layers, which the loss without them tells apart by much."""


@dataclass(frozen=True)
class PruningText:
    """What a run reads; None where no corpus is named."""

    config: PruneRun
    train: Corpus | None
    """In the vocabulary of the model to prune."""
    valid: Corpus | None
    """In its own: `held_out` reads it in that of a model."""

    @classmethod
    def open(cls, config: PruneRun, source: Path, positions: int) -> "PruningText":
        """Open the corpora of a run, in the vocabulary of the model in the folder `source`.

        Raises:
            CorpusError: one is missing, cut short, or unlike the others.
            ModelError: the model has another tokenizer, or too few positions.
        """
        if not config.corpus:
            valid = Corpus(config.corpus_valid) if config.corpus_valid else None
            train = None
        else:
            opened = corpora.open_folders(config.corpus, config.corpus_valid)
            train, valid = opened.train, opened.valid
        for corpus in (train, valid):
            if corpus is not None and corpus.length > positions:
                raise ModelError(
                    f"{config.model}: the model has {positions} positions, but {corpus.folders[0]} "
                    f"has instances of {corpus.length} tokens; prepare one with "
                    f"max_length={positions}"
                )
        return cls(
            config,
            None if train is None else in_vocabulary_of(train, source),
            valid,
        )

    @property
    def tag_sets(self) -> TagSets:
        """Those of the corpus; none where there is none."""
        corpus = self.train or self.valid
        return {} if corpus is None else corpus.tag_sets

    def scoring_batches(self) -> list[Batch]:
        """Return this process's share of the instances that scores are made on."""
        settings = self.config.scoring
        if settings.method == "magnitude":
            return []
        return self._sample(settings.instances, settings.batch_size)

    def layer_batches(self) -> list[Batch]:
        """Return this process's share of the instances that layers are chosen by."""
        return self._sample(LAYER_INSTANCES, BATCH_SIZE)

    def repair_batches(self, instances: int) -> list[Batch]:
        """Return the instances to refit by, all of them in every process."""
        return self._sample(instances, BATCH_SIZE, divided=False)

    def held_out(self, tokenizer: Path) -> tuple[Iterator[Batch], Missing]:
        """Return this process's share of what is measured on, always with the same masks.

        Args:
            tokenizer: Folder of the tokenizer to read it in: the model's, or a smaller one.

        Returns:
            The batches, and what a masked word counts for that the tokenizer has no piece for.
        """
        assert self.valid is not None
        corpus = in_vocabulary_of(self.valid, tokenizer)
        processes = distributed.world_size()
        mine = -(-self.config.held_out_instances // (BATCH_SIZE * processes))
        batches = evaluation_batches(
            corpus,
            self.config.masking,
            BATCH_SIZE,
            rank=distributed.rank(),
            world_size=processes,
            with_missing=True,
        )
        whole = math.log(self.valid.manifest.vocabulary_size)
        return itertools.islice(batches, mine), Missing(corpus.manifest.special_ids["unk"], whole)

    def _sample(self, instances: int, batch_size: int, *, divided: bool = True) -> list[Batch]:
        """Return a random sample of masked instances, the same for any number of processes.

        Args:
            instances: In all, at most the corpus once, rounded up to whole batches.
            batch_size: Instances a batch.
            divided: Return this process's share; false: the whole to every process.
        """
        if self.train is None:
            raise ConfigError("corpus = []: there is nothing to read; name a corpus folder")
        size = len(self.train)
        processes, rank = (distributed.world_size(), distributed.rank()) if divided else (1, 0)
        batch_size = min(batch_size, instances, size)
        batches = -(-min(instances, size) // batch_size)
        micro_batches = MicroBatches(
            corpus_size=size,
            seed=self.config.seed,
            batch_size=batch_size * processes,
            micro_batch_size=batch_size,
            rank=rank,
            world_size=processes,
        )
        stream = training_batches(self.train, self.config.masking, micro_batches)
        return [batch for _, batch in itertools.islice(stream, -(-batches // processes))]
