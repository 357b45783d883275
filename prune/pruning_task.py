"""A task as what a pruning reads: its examples score, repair and judge a fine-tuned model."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from lert_ds import distributed
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.sampler import shuffled
from lert_ds.errors import ConfigError
from lert_ds.finetune.batches import TaskBatch, collate
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.task_data import TaskData, open_task
from lert_ds.finetune.task_evaluation import evaluate_model, refuse_other_labels
from lert_ds.labels import TagSets
from lert_ds.model_surgery import renumbering
from lert_ds.train.metrics import MetricSums
from prune.importance.rows import Ask, losses, task_rows
from prune.prune_config import PruneRun
from prune.pruning_text import BATCH_SIZE, LAYER_INSTANCES


@dataclass(frozen=True)
class PruningTask:
    """What a run reads of a task; `PruningData` in `pruning_text` is its contract."""

    config: PruneRun
    data: TaskData

    @classmethod
    def open(cls, config: PruneRun, source: Path, shape: LertConfig) -> "PruningTask":
        """Open the task of a run in the tokenizer of the model in the folder `source`.

        Raises:
            UserError: a file is missing or wrong, or the model is not fine-tuned for the task.
        """
        assert config.task is not None
        data = open_task(config.task, source, shape)
        refuse_other_labels(config.model, shape.id2label, data.task)
        if data.task.kind == "spans" and config.scoring.method == "textpruner_logits":
            raise ConfigError(
                "scoring.method = textpruner_logits compares one set of logits, but a model for "
                f"{data.task.title} has two; take fisher, which needs no labels either"
            )
        return cls(config, data)

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """With the task's head."""
        return KINDS[self.data.task.kind].model

    @property
    def tag_sets(self) -> TagSets:
        """None: no linguistic tags."""
        return {}

    def ask(self, model: PreTrainedModel) -> Ask:
        """Return what a batch asks of a model."""
        return task_rows(self.data.task.kind)

    def layer_ask(self) -> Ask:
        """Return the same."""
        return task_rows(self.data.task.kind)

    def scoring_batches(self) -> Sequence[TaskBatch]:
        """Return this process's share of the examples that scores are made on."""
        settings = self.config.scoring
        if settings.method == "magnitude":
            return []
        return self._sample(settings.instances, settings.batch_size)

    def layer_batches(self) -> Sequence[TaskBatch]:
        """Return this process's share of the examples that layers are chosen by."""
        return self._sample(LAYER_INSTANCES, BATCH_SIZE)

    def repair_batches(self, instances: int) -> Sequence[TaskBatch]:
        """Return the examples to refit by, all of them in every process."""
        return self._sample(instances, BATCH_SIZE, divided=False)

    def held_out(self, model: PreTrainedModel, tokenizer: Path) -> dict[str, float]:
        """Return the task's metrics on the dev file, read with a tokenizer."""
        data = self.data
        if tokenizer != data.tokenizer_folder:
            data = open_task(data.settings, tokenizer, model.config)
        values, _ = evaluate_model(model, data, data.dev)
        return values

    def trial_loss(
        self,
        model: PreTrainedModel,
        batches: Sequence[TaskBatch],
        pieces: Tensor | None,
        whole: int,
        unknown_id: int,
    ) -> float:
        """Return the loss on batches in the `whole` vocabulary, of which the model has `pieces`."""
        if pieces is not None:
            new_ids = renumbering(pieces, whole, unknown_id)
            batches = [batch._replace(input_ids=new_ids[batch.input_ids]) for batch in batches]
        sums, ask = MetricSums(), self.ask(model)
        for batch in batches:
            sums.add(losses(ask(model, batch.to(model.device))))
        return sum(sums.reduce().values())

    def piece_counts(self) -> NDArray[np.int64]:
        """Return how often each piece occurs in what is trained on, by its id."""
        ids = np.concatenate([feature.input_ids for feature in self.data.train.features])
        return np.bincount(ids, minlength=self.data.vocabulary_size).astype(np.int64)

    @property
    def corpora(self) -> tuple[Path, ...]:
        """None: `mark` tells what is read."""
        return ()

    @property
    def valid_corpora(self) -> tuple[Path, ...]:
        """None."""
        return ()

    @property
    def mark(self) -> str:
        """A hash of what is read."""
        return self.data.fingerprint

    def _sample(
        self, instances: int, batch_size: int, *, divided: bool = True
    ) -> Sequence[TaskBatch]:
        features = self.data.train.features
        count = min(instances, len(features))
        chosen = shuffled(np.arange(count), len(features), self.config.seed).indices.tolist()
        parts = [chosen[at : at + batch_size] for at in range(0, count, batch_size)]
        if divided:
            world_size = distributed.world_size()
            # As many batches for each process; what is left over counts for none.
            even = len(parts) // world_size * world_size or len(parts)
            parts = list(itertools.islice(parts[:even], distributed.rank(), None, world_size))
        return [collate(features, part, self.data.pad_id) for part in parts]
