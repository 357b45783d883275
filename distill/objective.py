"""Distillation as an objective: a batch, through the student and its teachers, to a loss.

    loss = w_kd(step) · Σ teachers, heads · weight · KD(student's logits, teacher's)
         + Σ matches · weight · loss(student's features, teacher's)
         + w_hard(step) · loss on the labels

KD and matches are TextBrewer's (`textbrewer_losses.py`). What stays aside is its training loop: our
engine trains student and projections, and the teachers are out of its sight.
Logits are those of the masked positions, gathered before the decoder in both models: full logits
of 21,128 words at every position are most of the memory that TextBrewer's own loop takes.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.adaptor import Adaptor, Logits
from distill.answers import Answer, Taught, TopLogits, keep_top, top_loss
from distill.distillation_config import DistillationConfig, MatchConfig
from distill.features import Taps, first_layers, in_float32, tap_feature
from distill.taught_batches import TaughtBatch, counts_of
from distill.teacher import Teacher
from distill.teacher_cache import TeacherCache
from distill.textbrewer_losses import Float32Out, compute_only, weight_at
from lert_ds.kernels.documents import attention_arguments
from lert_ds.objective import AnyBatch, Batch, Metrics, StepOutput, metric
from lert_ds.train.optim import ParameterOptions


class DistillationObjective(nn.Module):
    """Wraps the student that it trains; `Objective` in `lert_ds.objective` is its contract.

    Its parameters are the student's and the projections'. Metrics, each `[sum, count]`: those of
    the loss on the labels (`mlm/loss`, …), with `hard/loss` its sum and `loss` the whole;
    `kd/<head>`, over the teachers by their weights; `match/<loss>`, over the matches of that loss.
    In evaluation also `<head>/agreement`, how often the student's first choice is the teachers',
    and `<head>/kl`, from the teachers' distribution to the student's, in nats at temperature 1.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teachers: Sequence[Teacher],
        config: DistillationConfig,
        adaptor: Adaptor,
        total_steps: int,
        *,
        labels_only: bool = False,
    ) -> None:
        """Take the models, and what `matches.resolve` made of the configuration.

        Args:
            student: What is trained.
            teachers: Frozen, on the student's device.
            config: Its matches are explicit.
            adaptor: From models and batches to logits and labels.
            total_steps: Of the run; the schedulers depend on it.
            labels_only: Train on the labels alone, and ask the teachers in evaluation only: what
                the student would be without them.
        """
        super().__init__()
        self.student = student
        self._teachers = tuple(teachers)  # in no module: see Teacher
        self._config, self._adaptor, self._total_steps = config, adaptor, total_steps
        self._labels_only = labels_only
        self._kd = compute_only(config, ())
        matches = () if labels_only else config.intermediate_matches
        self.projections = nn.ModuleList()
        self.projection_options: list[dict[str, float]] = []
        """Of each projection: `lr` and `weight_decay`, where the configuration gives them."""
        self._matchings = [
            self._matching(teacher, [match for match in matches if match.teacher == number])
            for number, teacher in enumerate(self._teachers)
        ]
        self._student_taps = Taps(student, _features(matches, "layer_S"), config.relation_heads)
        self._cache: TeacherCache | None = None

    def keep_answers(self, cache: TeacherCache) -> None:
        """Write down in training what the teachers say."""
        self._cache = cache

    def _matching(self, teacher: Teacher, matches: Sequence[MatchConfig]) -> "_Matching":
        distiller = compute_only(self._config, matches)
        for place, projection in enumerate(distiller.projs):
            if projection is not None:
                # A copy: TextBrewer shares one activation among all projections of a kind.
                self.projections.append(Float32Out(copy.deepcopy(projection)))
                self.projection_options.append(distiller.projs_group[place])
                distiller.projs[place] = self.projections[-1]
        taps = Taps(teacher.model, _features(matches, "layer_T"), self._config.relation_heads)
        return _Matching(distiller, taps)

    def parameter_options(self, learning_rate: float) -> dict[str, ParameterOptions]:
        """Return what the projections' optimizer differs in, in a run of `learning_rate`."""
        return {
            f"projections.{number}": ParameterOptions(
                options.get("lr", learning_rate) / learning_rate, options.get("weight_decay")
            )
            for number, options in enumerate(self.projection_options)
            if options
        }

    def forward(self, given: AnyBatch, *, step: int) -> StepOutput:
        """Return the loss and the metrics of one micro-batch at optimizer step `step`, from 0.

        A batch without a masked position adds exactly 0 to KD and to the loss on the labels; every
        head still takes part in the backward pass, which ZeRO has to find alike on every rank.
        """
        evaluating = not self.training
        batch: Any = given.batch if isinstance(given, TaughtBatch) else given
        logits = self._adaptor.logits(self.student, batch)
        features = self._student_taps.take(batch.attention_mask)
        with torch.autocast(batch.input_ids.device.type, enabled=False):  # losses are in float32
            hard = self._adaptor.hard_loss(logits, batch, step=step, evaluating=evaluating)
            loss, metrics = hard.loss, dict(hard.metrics)
            if self._labels_only and not evaluating:
                return StepOutput(loss, metrics)
            answers = self._answers(given, step)
            taught = [answer.logits for answer in answers]
            if evaluating:
                metrics |= self._agreement(logits, taught, step)
            if self._labels_only:
                return StepOutput(loss, metrics, hard.answers)
            metrics["hard/loss"] = metrics["loss"]
            loss = self._at(step, "hard_label_weight") * loss
            distances: Metrics = {}
            if evaluating or self._config.kd_loss_weight:
                distance, distances = self._distance(logits, taught, batch, step)
                loss = loss + self._at(step, "kd_loss_weight") * distance
            gap, gaps = self._gap(
                features,
                [
                    matching.taps.features(answer.sources, batch.attention_mask)
                    for matching, answer in zip(self._matchings, answers, strict=True)
                ],
                batch,
            )
            loss = loss + gap
            metrics |= distances | gaps
            metrics["loss"] = metric(loss, loss.new_ones(()))
        return StepOutput(loss, metrics, hard.answers)

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return what the adaptor makes of reduced metrics."""
        return self._adaptor.summary(values)

    def _answers(self, batch: AnyBatch, step: int) -> Sequence[Answer]:
        """Return what each teacher says of a batch, or has said."""
        if not isinstance(batch, TaughtBatch):
            return [self._ask(number, batch) for number in range(len(self._teachers))]
        if batch.answers:
            return batch.answers
        assert self._cache is not None
        layout, temperature = self._cache.layout, self._config.temperature
        heads = self._adaptor.head_weights(step)
        answers = []
        for number in range(len(self._teachers)):
            logits, sources = self._ask(number, batch.batch)
            kept = {
                head: keep_top(found, layout.top_k, temperature)
                if isinstance(found, Tensor) and layout.form(found.shape[-1]) == "top"
                else found
                for head, found in logits.items()
                if head in heads
            }
            answers.append(Answer(kept, sources))
        masked, tokens = counts_of(batch.batch)
        on_host = [answer.to(torch.device("cpu")) for answer in answers]
        self._cache.put(batch.rows, ~self._cache.has(batch.rows), masked, tokens, on_host)
        return [self._cache.rounded(answer) for answer in answers]

    @torch.no_grad()
    def _ask(self, number: int, batch: AnyBatch) -> Answer:
        """Return a teacher's logits, and what its matches compare."""
        model, taps = self._teachers[number].model, self._matchings[number].taps
        if self.training and not self._config.kd_loss_weight:  # then only features are learnt
            attention: dict[str, Any] = {"attention_mask": batch.attention_mask}
            if isinstance(batch, Batch):
                attention = attention_arguments(model, batch)
            with first_layers(model, taps.layers) as encoder:
                encoder(batch.input_ids, token_type_ids=batch.token_type_ids, **attention)
            return Answer({}, taps.sources())
        return Answer(dict(self._adaptor.logits(model, batch)), taps.sources())

    def _at(self, step: int, name: str) -> float:
        return weight_at(self._config, name, step / self._total_steps)

    def _distance(
        self, logits: Logits, taught: Sequence[Mapping[str, Taught]], batch: AnyBatch, step: int
    ) -> tuple[Tensor | float, Metrics]:
        """Return KD over heads and teachers, weighed, and what it is by head."""
        labels = self._adaptor.labels(batch)
        total: Tensor | float = 0.0
        metrics: Metrics = {}
        for head, head_weight in self._adaptor.head_weights(step).items():
            of_head = logits[head].new_zeros(())
            for teacher, its_logits in zip(self._teachers, taught, strict=True):
                kd = self._kd_of(logits[head], its_logits[head], labels[head])
                of_head = of_head + teacher.weight * kd
            total = total + head_weight * of_head
            rows = of_head.new_tensor(len(logits[head]))
            weights = sum(teacher.weight for teacher in self._teachers)
            metrics[f"kd/{head}"] = metric(of_head / weights * rows, rows)
        return total, metrics

    def _kd_of(self, student: Tensor, teacher: Taught, labels: Tensor) -> Tensor:
        if not len(student):
            return student.sum()  # 0, and part of the graph; a mean over no rows would be nan
        if isinstance(teacher, TopLogits):
            return top_loss(
                student,
                teacher,
                self._config.temperature,
                squared=self._config.temperature_squared,
                less_entropy=self._config.kd_loss_type == "kl",
            )
        if self._config.kd_loss_type == "mse" or self._config.temperature_scheduler != "none":
            # TextBrewer's own; the other losses are exact in pieces, whatever the logits' type.
            student, teacher = student.float(), teacher.float()
        if self._config.probability_shift:
            teacher = teacher.clone()  # TextBrewer shifts in place
            labels = torch.where(labels < 0, teacher.argmax(-1), labels)
        found, _ = self._kd.compute_loss(
            {"logits": [student], "labels": [labels]}, {"logits": [teacher]}
        )
        assert isinstance(found, Tensor)
        return found

    def _gap(
        self, features: Mapping[str, Any], taught: Sequence[Mapping[str, Any]], batch: AnyBatch
    ) -> tuple[Tensor | float, Metrics]:
        """Return the matches' losses, weighed and added, and their means by kind of loss."""
        mask = batch.attention_mask
        if mask is None:  # without one attention_ce is 0, and nst has another scale
            mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
        total: Tensor | float = 0.0
        metrics: Metrics = {}
        for matching, its_features in zip(self._matchings, taught, strict=True):
            if not matching.kinds:
                continue
            found, parts = matching.distiller.compute_loss(
                {**in_float32(features), "inputs_mask": mask}, in_float32(its_features)
            )
            total = total + found
            for kind, part in zip(matching.kinds, parts.values(), strict=True):
                pair = metric(part, part.new_ones(()))
                name = f"match/{kind}"
                metrics[name] = metrics[name] + pair if name in metrics else pair
        return total, metrics

    def _agreement(self, logits: Logits, taught: Sequence[Mapping[str, Any]], step: int) -> Metrics:
        """Return how near the student comes to the mean of the teachers' distributions."""
        metrics: Metrics = {}
        all_weights = sum(teacher.weight for teacher in self._teachers)
        for head in self._adaptor.head_weights(step):
            found = logits[head].float().log_softmax(-1)
            wanted = torch.zeros_like(found)
            for teacher, its_logits in zip(self._teachers, taught, strict=True):
                share = teacher.weight / all_weights
                wanted.add_(its_logits[head].float().softmax(-1), alpha=share)
            rows = found.new_tensor(len(found))
            kl = (torch.xlogy(wanted, wanted) - wanted * found).sum()
            same = (wanted.argmax(-1) == found.argmax(-1)).sum()
            metrics |= {f"{head}/kl": metric(kl, rows), f"{head}/agreement": metric(same, rows)}
        return metrics


class _Matching:
    """The matches to one teacher."""

    def __init__(self, distiller: Any, taps: Taps) -> None:
        self.distiller, self.taps = distiller, taps
        self.kinds = [match.loss for match in distiller.d_config.intermediate_matches]


def _features(matches: Sequence[MatchConfig], side: str) -> dict[str, set[int]]:
    """Return the layers that the matches read on one side, by feature."""
    wanted: dict[str, set[int]] = {}
    for match in matches:
        layers = getattr(match, side)
        layers = layers if isinstance(layers, tuple) else (layers,)
        wanted.setdefault(tap_feature(match.feature, match.loss), set()).update(layers)
    return wanted
