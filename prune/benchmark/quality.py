"""What a benchmark's models reach on a held-out corpus: the same masks for all, the same sums.

Model folders by `lert_ds.evaluation`; graphs by the same means in numpy. A model of a smaller
vocabulary reads the pieces that it lacks as [UNK]; to predict one of them counts as missed, and
costs the logarithm of the whole vocabulary (`lert_ds.evaluation.Missing`).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lert_ds.data.loader import evaluation_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.shards import Corpus
from lert_ds.edge.edge_model import EdgeModel
from lert_ds.errors import ConfigError
from lert_ds.evaluation import Missing, evaluate, shared_tasks
from lert_ds.labels import IGNORE_INDEX
from lert_ds.objective import Batch
from lert_ds.vocabulary_view import in_vocabulary_of
from prune.benchmark import models as benchmark_models
from prune.benchmark.columns import Column
from prune.benchmark.worker import Runner

BATCH_SIZE = 16
UNKNOWN_SHARE = "mlm/unknown_share"
"""Of the pieces to predict, those that are [UNK] to the model."""


class HeldOut:
    """Instances of a corpus that each column is evaluated on, in its own vocabulary."""

    def __init__(self, folders: Sequence[Path], instances: int | None) -> None:
        """Open a corpus.

        Args:
            folders: Corpus folders.
            instances: How many instances count, in order, rounded up to whole batches of 16; None
                for all.

        Raises:
            CorpusError: it cannot be read.
        """
        self.corpus = Corpus(folders)
        self._batch_count = math.ceil((instances or len(self.corpus)) / BATCH_SIZE)
        self.instances = min(len(self.corpus), self._batch_count * BATCH_SIZE)

    def view(self, column: Column) -> Corpus:
        """Return the corpus in the vocabulary of a column.

        Raises:
            ModelError: its tokenizer is another than the corpus's.
            ConfigError: it has too few positions.
        """
        if self.corpus.length > column.positions:
            raise ConfigError(
                f"corpus_valid = {self.corpus.folders[0]}: instances of {self.corpus.length} "
                f"tokens, but {column.source} has {column.positions} positions; prepare one of "
                f"max_length = {column.positions}, or leave it out"
            )
        return in_vocabulary_of(self.corpus, column.folder)

    def evaluate(self, column: Column) -> dict[str, float]:
        """Return `mlm/loss`, `mlm/accuracy`, `<task>/loss`, `<task>/accuracy`, UNKNOWN_SHARE."""
        corpus = self.view(column)
        missing = Missing(
            corpus.manifest.special_ids["unk"], math.log(self.corpus.manifest.vocabulary_size)
        )
        unknown = _Counter(missing.unknown_id)
        batches = unknown.watch(self._batches(corpus))
        if column.graph is None:
            model = benchmark_models.load_mlm(column.folder, column.precision)
            found = evaluate(model, batches, corpus.tag_sets, missing)
            found = {name: value for name, value in found.items() if "f1" not in name}
        else:
            edge = EdgeModel(column.folder, graph=column.graph)
            tasks = [
                task for task in shared_tasks(column.config, corpus.tag_sets) if task in edge.tasks
            ]
            found = evaluate_graph(edge.run, batches, tasks, missing)
        return {**found, UNKNOWN_SHARE: unknown.share}

    def record(self) -> dict[str, Any]:
        """Return what the record of a benchmark says of the corpus."""
        return {
            "corpus": [str(folder) for folder in self.corpus.folders],
            "instances": self.instances,
            "length": self.corpus.length,
        }

    def _batches(self, corpus: Corpus) -> Iterator[Batch]:
        batches = evaluation_batches(corpus, MaskingConfig(), BATCH_SIZE, with_missing=True)
        return itertools.islice(batches, self._batch_count)


def evaluate_graph(
    run: Runner, batches: Iterable[Batch], tasks: Sequence[str], missing: Missing
) -> dict[str, float]:
    """Return the means that `lert_ds.evaluation.evaluate` returns, of a graph's outputs.

    Args:
        run: Inputs to outputs: `logits`, `<task>_logits`, at the masked positions or at every one.
        batches: Held out.
        tasks: Whose outputs are evaluated too.
        missing: What a masked word counts for that the model has no piece for.
    """
    sums = {head: _Sums() for head in ("mlm", *tasks)}
    for batch in batches:
        if not len(batch.labels):
            continue
        ids = batch.input_ids.numpy()
        mask = batch.attention_mask
        places = batch.masked_positions.numpy()
        outputs = run(
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids) if mask is None else mask.numpy().astype(int),
                "token_type_ids": np.zeros_like(ids),
                "masked_positions": places,
            }
        )
        labels = {"mlm": batch.labels, **batch.tags}
        for head, own in sums.items():
            logits = outputs["logits" if head == "mlm" else f"{head}_logits"]
            if logits.ndim == 3:
                logits = logits.reshape(-1, logits.shape[-1])[places]
            truth = labels[head].numpy()
            known = truth != (missing.unknown_id if head == "mlm" else IGNORE_INDEX)
            own.add(logits[known], truth[known])
            if head == "mlm":
                own.miss(int((~known).sum()), missing.loss)
    return {
        f"{head}/{name}": value
        for head, own in sums.items()
        if own.count
        for name, value in own.means().items()
    }


@dataclass
class _Sums:
    """Of one head, over batches."""

    loss: float = 0.0
    hits: int = 0
    count: int = 0

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Count predictions.

        Args:
            logits: [masked, classes].
            labels: [masked].
        """
        below = logits - logits.max(-1, keepdims=True)
        log_sums = np.log(np.exp(below).sum(-1))
        self.loss += float((log_sums - below[np.arange(len(labels)), labels]).sum())
        self.hits += int((logits.argmax(-1) == labels).sum())
        self.count += len(labels)

    def miss(self, count: int, loss: float) -> None:
        """Count what could not be predicted."""
        self.loss += count * loss
        self.count += count

    def means(self) -> Mapping[str, float]:
        return {"loss": self.loss / self.count, "accuracy": self.hits / self.count}


@dataclass
class _Counter:
    """Counts the labels of batches that go by."""

    unknown_id: int
    counts: list[int] = field(default_factory=lambda: [0, 0])

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.counts[0] += int((batch.labels == self.unknown_id).sum())
            self.counts[1] += len(batch.labels)
            yield batch

    @property
    def share(self) -> float:
        unknown, total = self.counts
        return unknown / max(total, 1)
