"""LERT's training objective: a masked batch to a loss and its metrics.

    loss = MLM + Σ w(step) · task        over pos, ner, dep; Cui et al. 2022, arXiv 2211.05344

Every term is a mean of cross entropies over the masked positions of the batch, a task's over those
whose tag is known. The weights grow from 0 to 1, each over its own share of the run
(linguistically-informed pre-training, LIP): what is learnt faster is weighed in full sooner.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from lert_ds.config import Config
from lert_ds.errors import ConfigError
from lert_ds.kernels.documents import attention_arguments
from lert_ds.kernels.linear_cross_entropy import RowSums, linear_cross_entropy
from lert_ds.kernels.modules import is_plain
from lert_ds.kernels.products import linear_of
from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining, LertForPreTrainingOutput
from lert_ds.objective import Batch, Metrics, StepOutput, metric


class LipConfig(Config):
    """Which linguistic tasks are trained, and how fast their weights grow."""

    tasks: Annotated[tuple[Literal["pos", "ner", "dep"], ...], Field(strict=False)] = (
        "pos",
        "ner",
        "dep",
    )
    """Linguistic tasks beside MLM; [] trains MLM alone."""
    pos: float = 1 / 6
    """Share of the run after which POS has its full weight, above 0 to 1."""
    ner: float = 1 / 3
    """The same of NER."""
    dep: float = 1 / 2
    """The same of DEP."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("pos", "ner", "dep"):
            if not 0 < (share := getattr(self, key)) <= 1:
                raise ValueError(f"{key} = {share}: a share of the run, above 0 and at most 1")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {list(self.tasks)}: name each task once")
        return self


def lip_weight(step: int, end_step: float) -> float:
    """Return the weight of a task at optimizer step `step`, from 0: clip(step / end_step, 0, 1)."""
    return min(max(step / end_step, 0.0), 1.0)


class LertLoss:
    """The losses of LERT's heads, weighed and added: logits and labels to a loss and its metrics.

    Metrics, each `[sum, count]`: `loss`, `mlm/loss`, `mlm/accuracy`, and for each task
    `<task>/loss`, `<task>/accuracy`, `<task>/weight`. In evaluation also `<task>/macro_f1`,
    [classes, 2]: its rows add over batches and ranks as the others do, and the mean of their ratios
    (of the classes that occur in prediction or truth) is macro-F1.
    """

    def __init__(self, lip: LipConfig, total_steps: int) -> None:
        """Take the tasks, whose weights grow over shares of a run of `total_steps` steps."""
        assert total_steps > 0, total_steps
        self.end_steps: dict[str, float] = {
            task: getattr(lip, task) * total_steps for task in lip.tasks
        }

    def weight(self, task: str, step: int) -> float:
        """Return the weight of a linguistic task at optimizer step `step`."""
        return lip_weight(step, self.end_steps[task])

    def __call__(
        self,
        logits: Mapping[str, Tensor],
        batch: Batch,
        *,
        step: int,
        evaluating: bool,
        words: RowSums | None = None,
    ) -> StepOutput:
        """Return the loss and the metrics of one micro-batch at optimizer step `step`, from 0.

        A batch without a masked position, or a task without a known tag in it, adds exactly 0; its
        heads still take part in the backward pass, which ZeRO has to find alike on every rank.

        Args:
            logits: `mlm` and each task to [masked, classes].
            batch: Its `labels` and `tags` are read.
            step: Optimizer step.
            evaluating: Count for macro-F1 too.
            words: What `mlm` would come to, where its logits were not kept.
        """
        everywhere = torch.ones_like(batch.labels, dtype=torch.bool)
        if words is None:
            mlm = _HeadResult.of(logits["mlm"], batch.labels, everywhere)
        else:
            mlm = _HeadResult(words.loss, batch.labels, words.hits, everywhere.sum())
        loss = mlm.mean_loss()
        metrics = mlm.metrics("mlm")
        for task in self.end_steps:
            tags = batch.tags[task]
            result = _HeadResult.of(logits[task], tags, known=tags != IGNORE_INDEX)
            weight = self.weight(task, step)
            loss = loss + weight * result.mean_loss()
            metrics |= result.metrics(task)
            metrics[f"{task}/weight"] = metric(loss.new_full((), weight), loss.new_ones(()))
            if evaluating:
                counts = f1_counts(result.predicted, tags, classes=logits[task].shape[-1])
                metrics[f"{task}/macro_f1"] = counts
        metrics["loss"] = metric(loss, loss.new_ones(()))
        return StepOutput(loss, metrics)


def train_heads(model: LertForPreTraining, tasks: Iterable[str]) -> None:
    """Freeze each linguistic head that is not of `tasks`: no loss moves it, nor must weight decay.

    Raises:
        ConfigError: a task has no head, for want of tags.
    """
    heads = model.config.tasks
    for task in tasks:
        if task not in heads:
            raise ConfigError(
                f"lip.tasks names {task}, but there are no tags for it "
                f"(there are: {', '.join(heads) or 'none'}); take it out of lip.tasks"
            )
    for head in heads:
        model.tag_head(head).requires_grad_(head in tasks)


def masked_logits(model: LertForPreTraining, batch: Batch) -> dict[str, Tensor]:
    """Return the logits of every head at the masked positions: `mlm` and each task, by name."""
    output = _of_masked(model, batch, decode_words=True)
    assert output.logits is not None
    assert output.tag_logits is not None
    return {"mlm": output.logits, **output.tag_logits}


def _of_masked(
    model: LertForPreTraining, batch: Batch, *, decode_words: bool
) -> LertForPreTrainingOutput:
    output: LertForPreTrainingOutput = model(
        batch.input_ids,
        masked_positions=batch.masked_positions,
        decode_words=decode_words,
        **attention_arguments(model, batch),
    )
    return output


def with_perplexity(values: dict[str, float]) -> dict[str, float]:
    """Return `values` and what follows from them: `mlm/perplexity`, e to the loss."""
    if "mlm/loss" not in values:
        return values
    try:
        perplexity = math.exp(values["mlm/loss"])
    except OverflowError:
        perplexity = math.inf
    return {**values, "mlm/perplexity": perplexity}


class PretrainingObjective(nn.Module):
    """Wraps the model that it trains; `Objective` in `lert_ds.objective` is its contract."""

    def __init__(
        self,
        model: LertForPreTraining,
        lip: LipConfig,
        total_steps: int,
        *,
        fused_loss: bool = False,
    ) -> None:
        """Train `model`'s MLM head and those of `lip.tasks` over a run of `total_steps` steps.

        With `fused_loss` the decoder and its cross entropy are computed together.

        Raises:
            ConfigError: a task has no head, for want of tags.
        """
        super().__init__()
        train_heads(model, lip.tasks)
        self.model = model
        self.lert_loss = LertLoss(lip, total_steps)
        self._fused_loss = fused_loss

    def forward(self, batch: Batch, *, step: int) -> StepOutput:
        """Return the loss and the metrics of one micro-batch at optimizer step `step`, from 0."""
        evaluating = not self.training
        decoder = self.model.cls.predictions.decoder
        if not (self._fused_loss and is_plain(decoder)):
            logits = masked_logits(self.model, batch)
            return self.lert_loss(logits, batch, step=step, evaluating=evaluating)
        output = _of_masked(self.model, batch, decode_words=False)
        assert output.transformed is not None
        assert output.tag_logits is not None
        words = linear_cross_entropy(
            output.transformed, decoder.weight, decoder.bias, batch.labels, linear_of(decoder)
        )
        return self.lert_loss(
            output.tag_logits, batch, step=step, evaluating=evaluating, words=words
        )

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return `values` and the perplexity."""
        return with_perplexity(values)


class _HeadResult(NamedTuple):
    """Sums of one head over its known labels; nothing here waits for the device."""

    loss_sum: Tensor
    predicted: Tensor
    hits: Tensor
    total: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, known: Tensor) -> "_HeadResult":
        # float32 or finer: in bfloat16 a sum over 21,128 exponentials keeps two digits.
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss_sum = functional.cross_entropy(
            wide, labels.where(known, -100), ignore_index=-100, reduction="sum"
        )
        predicted = logits.detach().argmax(-1)
        hits = ((predicted == labels) & known).sum()
        return cls(loss_sum, predicted, hits, known.sum())

    def mean_loss(self) -> Tensor:
        return self.loss_sum / self.total.clamp(min=1)

    def metrics(self, name: str) -> Metrics:
        return {
            f"{name}/loss": metric(self.loss_sum, self.total),
            f"{name}/accuracy": metric(self.hits, self.total),
        }


def f1_counts(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return float32 [classes, 2]: twice the true positives, and predicted plus true occurrences.

    The ratio of a row is the F1 of its class; rows add over batches.

    Args:
        predicted: int64 [masked].
        labels: int64 [masked], IGNORE_INDEX where the truth is unknown; these count nowhere.
        classes: Number of classes.
    """
    known = labels != IGNORE_INDEX

    def occurrences(of: Tensor, where: Tensor) -> Tensor:
        return torch.bincount(torch.where(where, of, classes), minlength=classes + 1)[:classes]

    hits = occurrences(labels, predicted == labels)
    return torch.stack(
        [2 * hits, occurrences(predicted, known) + occurrences(labels, known)], dim=-1
    ).float()
