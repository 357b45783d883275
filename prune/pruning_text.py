"""The text of a pruning: samples of the corpus to prune by, held-out batches to measure on."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from lert_ds import corpora, distributed
from lert_ds.data.loader import evaluation_batches, training_batches
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError, ModelError
from lert_ds.evaluation import Missing, evaluate, shared_tasks
from lert_ds.labels import TagSets
from lert_ds.model_surgery import renumbering
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.vocabulary_view import in_vocabulary_of
from prune.importance.rows import Ask, masked_rows
from prune.prune_config import PruneRun

BATCH_SIZE = 16
"""Instances a batch where nothing depends on it."""
LAYER_INSTANCES = 128
"""Enough to rank layers, which the loss without them tells apart by much."""


class PruningData(Protocol):
    """What a run reads: text for a pre-trained model, or a task's examples for a fine-tuned one."""

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """Of the model to prune."""
        ...

    @property
    def tag_sets(self) -> TagSets:
        """Of the linguistic tasks that there are tags for."""
        ...

    @property
    def corpora(self) -> tuple[Path, ...]:
        """Corpus folders that scores are made on."""
        ...

    @property
    def valid_corpora(self) -> tuple[Path, ...]:
        """Corpus folders that are measured on."""
        ...

    @property
    def mark(self) -> str:
        """A hash of what else is read."""
        ...

    def ask(self, model: PreTrainedModel) -> Ask:
        """Return what a batch asks of a model where it is scored."""
        ...

    def layer_ask(self) -> Ask | None:
        """Return what a batch asks of a model where layers are chosen; None: what there is."""
        ...

    def scoring_batches(self) -> Sequence[Any]:
        """Return this process's share of the instances that scores are made on."""
        ...

    def layer_batches(self) -> Sequence[Any]:
        """Return this process's share of the instances that layers are chosen by."""
        ...

    def repair_batches(self, instances: int) -> Sequence[Any]:
        """Return the instances to refit by, all of them in every process."""
        ...

    def held_out(self, model: PreTrainedModel, tokenizer: Path) -> dict[str, float]:
        """Return what a model reaches on the held-out part; empty where there is none."""
        ...

    def trial_loss(
        self,
        model: PreTrainedModel,
        batches: Sequence[Any],
        pieces: Tensor | None,
        whole: int,
        unknown_id: int,
    ) -> float:
        """Return the loss on batches in the `whole` vocabulary, of which the model has `pieces`."""
        ...

    def piece_counts(self) -> NDArray[np.int64] | None:
        """Return how often each piece occurs, by its id; None where the corpora tell."""
        ...


@dataclass(frozen=True)
class PruningText:
    """What a run reads of corpora, a `PruningData`; None where no corpus is named."""

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

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """With the heads of pre-training."""
        return LertForPreTraining

    @property
    def corpora(self) -> tuple[Path, ...]:
        """Those of the run."""
        return self.config.corpus

    @property
    def valid_corpora(self) -> tuple[Path, ...]:
        """Those named, or the held-out folders."""
        return () if self.valid is None else tuple(self.valid.folders)

    @property
    def mark(self) -> str:
        """Nothing besides the corpora."""
        return ""

    def ask(self, model: PreTrainedModel) -> Ask:
        """Return what asks for masked words, and the tags that the corpus has (fisher: all)."""
        # fisher draws the tags itself.
        tasks = (
            model.config.tasks
            if self.config.scoring.method == "fisher"
            else shared_tasks(model.config, self.tag_sets)
        )
        return masked_rows(tasks)

    def layer_ask(self) -> None:
        """None: masked words, and the tags that model and corpus have."""
        return

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

    def held_out(self, model: PreTrainedModel, tokenizer: Path) -> dict[str, float]:
        """Return the losses and accuracies of a model's heads; empty where nothing is held out."""
        if self.valid is None:
            return {}
        assert isinstance(model, LertForPreTraining)
        batches, missing = self.held_out_batches(tokenizer)
        return evaluate(model, batches, self.tag_sets, missing)

    def trial_loss(
        self,
        model: PreTrainedModel,
        batches: Sequence[Batch],
        pieces: Tensor | None,
        whole: int,
        unknown_id: int,
    ) -> float:
        """Return the MLM loss; a word that the model lacks costs what saying nothing does."""
        assert isinstance(model, LertForPreTraining)
        if pieces is not None:
            new_ids = renumbering(pieces, whole, unknown_id)
            batches = [
                batch._replace(input_ids=new_ids[batch.input_ids], labels=new_ids[batch.labels])
                for batch in batches
            ]
            unknown_id = int(new_ids[unknown_id])
        return evaluate(model, batches, {}, Missing(unknown_id, math.log(whole)))["mlm/loss"]

    def piece_counts(self) -> None:
        """None: the corpora tell."""
        return

    def held_out_batches(self, tokenizer: Path) -> tuple[Iterator[Batch], Missing]:
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
