"""The loop: step, report, evaluate, save. It trains any objective and knows nothing of it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, NoReturn, Protocol, Self

import numpy as np
import psutil
import torch
from pydantic import model_validator

from lert_ds import distributed
from lert_ds.objective import AnyBatch
from lert_ds.train.batch_schedule import BatchSchedule
from lert_ds.train.best import BestWeights
from lert_ds.train.checkpoint import Checkpoints, SaveError
from lert_ds.train.checkpoint_folder import tag_of
from lert_ds.train.engine import Engine, NonFiniteError
from lert_ds.train.interruption import Interruption, reason
from lert_ds.train.metrics import MetricSums
from lert_ds.train.peers import Peers
from lert_ds.train.schedule import ScheduleConfig, multiplier
from lert_ds.train.tracking import Reporter
from lert_ds.train.watchdog import Watchdog


class TrainConfig(BatchSchedule):
    """How long, how much at a time, and how often to look."""

    steps: int = 0
    """Optimizer steps of the whole run; or say epochs."""
    epochs: float = 0.0
    """Passes over what is trained on, in the place of steps; they are rounded up to whole steps."""
    micro_batch_size: int
    """Instances a forward pass on one process, at most: the largest number up to this that divides
    a process's share of every batch."""
    learning_rate: float
    """The full rate, reached at the end of the warm-up."""
    gradient_clipping: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third more time, far less memory."""
    report_every: int = 10
    """Steps between two lines of metrics."""
    evaluate_every: int = 1000
    """Steps between two evaluations on the held-out corpus, and one at the end; 0 never."""
    save_every: int = 1000
    """Steps between two checkpoints, and one at the end; 0 never."""
    save_in_background: bool = True
    """Write checkpoints while training goes on, from a copy in the host's memory (12 bytes a
    parameter, over all processes)."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    keep_every: int = 0
    """Checkpoints at multiples of this step stay for good; 0 none."""
    stop_before_hours: float | None = None
    """Save and stop before the process is this old, as if a signal had come: a job's time limit."""
    timeout_seconds: float = 1800.0
    """Without any progress for so long, every process ends with an error: more than the longest
    pause that is sound, such as the first step with a slow compiler."""
    data_workers: int = 1
    """Processes that mask and collate ahead of the training; 0 does it in between."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("micro_batch_size", "report_every", "keep_checkpoints"):
            if (value := getattr(self, key)) < 1:
                raise ValueError(f"{key} = {value}: must be 1 or more")
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"epochs = {self.epochs}: must be above 0")
        if not (self.steps or self.epochs):
            raise ValueError("steps is missing; say how many, or how many epochs")
        if self.steps and self.epochs:
            raise ValueError(f"epochs = {self.epochs} and steps = {self.steps}: keep one of them")
        for key in (
            "steps", "evaluate_every", "save_every", "data_workers", "gradient_clipping",
            "keep_every",
        ):  # fmt: skip
            if (value := getattr(self, key)) < 0:
                raise ValueError(f"{key} = {value}: must be 0 or more")
        for key in ("timeout_seconds", "stop_before_hours"):
            if (limit := getattr(self, key)) is not None and not limit > 0:
                raise ValueError(f"{key} = {limit}: must be above 0")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate = {self.learning_rate}: must be above 0")
        return self


class Summarises(Protocol):
    """An objective that derives further numbers from the reduced ones (perplexity from loss)."""

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Return `values` and what follows from them."""
        ...


class Judge(Protocol):
    """Takes the answers of an evaluation one by one, and judges them together."""

    def add(self, answers: tuple[torch.Tensor, ...]) -> None:
        """Take the `answers` of one batch's StepOutput, on whatever device."""
        ...

    def values(self, peers: Peers) -> dict[str, float]:
        """Return metrics of all processes' answers; all processes must call it."""
        ...


class Data(NamedTuple):
    """Where the batches come from; made by the command, which knows the corpus."""

    training: Callable[[int, int], Iterator[tuple[int, AnyBatch]]]
    """Steps taken and samples consumed so far to the micro-batches from there on, each with its
    number."""
    evaluation: Callable[[int], Iterable[AnyBatch]] | None
    """Steps taken to the held-out batches; every process gets the same number of them."""
    judge: Callable[[], Judge] | None = None
    """To what judges one evaluation's answers, where sums over batches do not say it all."""


class Surroundings(NamedTuple):
    """What a trainer stands in: where its words go, and what can end it."""

    reporter: Reporter
    checkpoints: Checkpoints
    peers: Peers
    interruption: Interruption
    watchdog: Watchdog
    best: BestWeights | None = None
    """Keeps the weights that did best in an evaluation; None where the last ones are wanted."""


class Trainer:
    """Trains until `config.steps`; every number it needs to resume is a count."""

    def __init__(
        self,
        engine: Engine,
        objective: Summarises,
        data: Data,
        config: TrainConfig,
        schedule: ScheduleConfig,
        around: Surroundings,
        *,
        seed: int,
        flops_per_token: Callable[[int], float],
        peak_flops: float,
    ) -> None:
        """Take the parts.

        `flops_per_token` at a step and `peak_flops` (a process) are for the MFU alone.
        """
        self._engine, self._objective, self._data = engine, objective, data
        self._config, self._schedule = config, schedule
        self._reporter, self._checkpoints = around.reporter, around.checkpoints
        self._peers, self._interruption = around.peers, around.interruption
        self._best = around.best
        self._beat = around.watchdog.beat
        self._seed = seed
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops * distributed.world_size()
        self.step = 0
        self.samples = 0
        self.stopped_by: str | None = None
        """What asked to stop before the end; a checkpoint is there."""
        self._sums = MetricSums()
        self._window = _Window()
        self._step_seconds = self._save_seconds = self._evaluation_seconds = 0.0
        self._saves = 0
        self._saved: str | None = None

    def resume(self, tag: str) -> dict[str, Any]:
        """Go on from a checkpoint and return its state; all processes must call it."""
        state = self._checkpoints.load(self._engine, tag)
        self.step, self.samples = int(state["step"]), int(state["samples"])
        if distributed.is_main():
            self._sums.restore(state.get("sums", {}), self._engine.device)
        self._reporter.event(self.step, f"resumed from {tag}")
        return state

    def fit(self, state: dict[str, Any]) -> dict[str, float]:
        """Train to the end and return the last held-out metrics; `state` goes into checkpoints.

        Where something asks to stop, `stopped_by` says what, and a checkpoint is there.
        """
        batches = self._data.training(self.step, self.samples)
        self._engine.train()
        last: dict[str, float] = {}
        while self.step < self._config.steps and self.stopped_by is None:
            started = time.perf_counter()
            self._train_step(batches)
            self._step_seconds = time.perf_counter() - started
            self.samples += self._config.batch_size_at(self.step)
            self.step += 1
            self._reporter.advance(self.step)
            if self._is_due(self._config.report_every, self.step):
                self._report()
            if self._is_due(self._config.evaluate_every, self.step):
                last = self.evaluate()
            if self._is_due(self._config.save_every, self.step):
                self._save(state)
            self._listen(state)
        self._finish_save()
        self._peers.settle()
        if self.stopped_by is None and not last and self._config.evaluate_every:
            last = self.evaluate()  # resumed after the last step was saved
        return last

    def evaluate(self) -> dict[str, float]:
        """Return the held-out metrics, reported too; empty where there is no held-out corpus."""
        if self._data.evaluation is None:
            return {}
        sums, started = MetricSums(), time.perf_counter()
        judge = self._data.judge() if self._data.judge is not None else None
        self._engine.train(False)
        with torch.no_grad():
            for batch in self._data.evaluation(self.step):
                self._beat(self.step, "evaluating")
                output = self._engine(batch.to(self._engine.device), step=self.step)
                sums.add(output.metrics)
                if judge is not None:
                    judge.add(output.answers)
        self._engine.train()
        values = self._objective.summary(sums.reduce())
        if judge is not None:
            values |= judge.values(self._peers)
        self._reporter.report("valid", self.step, values)
        if self._best is not None:
            self._best.consider(self._engine, self.step, values)
        self._evaluation_seconds = time.perf_counter() - started
        self._window.restart()  # throughput is of training alone
        return values

    def _train_step(self, batches: Iterator[tuple[int, AnyBatch]]) -> None:
        rate = self._config.learning_rate
        rate *= multiplier(self._schedule, self.step, self._config.steps)
        self._engine.set_learning_rate(rate)
        self._engine.set_batch_size(self._config.batch_size_at(self.step))
        flops_per_token = self._flops_per_token(self.step)
        finite: torch.Tensor | None = None
        for _ in range(self._engine.accumulation):
            waited = time.perf_counter()
            self._beat(self.step, "waiting for data")
            number, batch = next(batches)
            self._beat(self.step, "training")
            self._window.waited += time.perf_counter() - waited
            self._window.add(_tokens(batch), flops_per_token)
            # Dropout is a function of the micro-batch, not of who computes it or what ran before:
            # so a run is the same on any number of processes and after any interruption.
            torch.manual_seed(_mix(self._seed, number))
            output = self._engine(batch.to(self._engine.device), step=self.step)
            self._engine.backward(output.loss)
            is_finite = torch.isfinite(output.loss.detach())
            finite = is_finite if finite is None else finite & is_finite
            self._sums.add(output.metrics)
            if self._engine.at_boundary() and not bool(finite):
                self._refuse("the loss is inf or nan")
            try:
                self._engine.step()
            except NonFiniteError as error:
                self._refuse(str(error))
        self._window.rate = rate

    def _refuse(self, reason: str) -> NoReturn:
        message = (
            f"step {self.step} on rank {distributed.rank()}: {reason}; nothing was updated or "
            "saved. Lower train.learning_rate or look at the batch, then start again: the run "
            "resumes from its newest checkpoint"
        )
        self._reporter.event(self.step, message)
        raise NonFiniteError(message)

    def _report(self) -> None:
        values = self._objective.summary(self._sums.reduce())
        values |= self._engine.state_of_scaling()
        values |= self._window.read(self._engine.device, self._peak_flops)
        self._reporter.report("train", self.step, {"samples": self.samples, **values})
        self._window.restart()

    def _save(self, state: dict[str, Any]) -> None:
        """Begin a checkpoint; where it cannot be written, training and the older ones stay."""
        self._finish_save()
        started = time.perf_counter()
        try:
            self._start_save(state)
        except SaveError as error:
            self._tell(error)
        if not self._config.save_in_background:
            self._finish_save()
        self._save_seconds = time.perf_counter() - started
        self._window.restart()

    def _start_save(self, state: dict[str, Any]) -> None:
        self._beat(self.step, "saving")
        counts = {"samples": self.samples, "sums": self._sums.state()}
        self._checkpoints.start(self._engine, self.step, {**counts, **state})
        self._saves += 1

    def _finish_save(self) -> None:
        """Publish the checkpoint that is being written, where there is one."""
        if not self._checkpoints.under_way:
            return
        try:
            self._saved = self._checkpoints.finish()
        except SaveError as error:
            self._tell(error)

    def _tell(self, error: SaveError) -> None:
        self._reporter.event(self.step, f"{error}. Training goes on: make room for the next one")

    def _listen(self, state: dict[str, Any]) -> None:
        """Agree with the others on what happened meanwhile: a save is written, a stop is asked."""
        margin = 2 * (self._step_seconds + self._save_seconds)
        if self._is_due(self._config.evaluate_every, self.step + 1):
            margin += self._evaluation_seconds
        # The number of a save, doubled, and one more while it is written: the largest of all tells
        # of the slowest, and a word about an earlier save is none about this one.
        writing = 2 * self._saves + self._checkpoints.writing
        stop, slowest = self._peers.exchange(self._interruption.code(margin), writing)
        if slowest == 2 * self._saves:
            self._finish_save()
        if stop and self.step < self._config.steps:
            self._stop(stop, state)

    def _stop(self, code: int, state: dict[str, Any]) -> None:
        """Save and end the training; where that cannot be, it is an error."""
        self._finish_save()
        if self._saved != tag_of(self.step):
            self._start_save(state)
            self._checkpoints.finish()
        self.stopped_by = reason(code)
        self._reporter.event(
            self.step, f"saved and stopped by {self.stopped_by}; the same command goes on from here"
        )

    def _is_due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._config.steps)


class _Window:
    """Time, tokens and operations since the last report."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.restart()

    def restart(self) -> None:
        self.started, self.waited = time.perf_counter(), 0.0
        self._tokens = self._flops = 0.0

    def add(self, tokens: int, flops_per_token: float) -> None:
        self._tokens += tokens
        self._flops += tokens * flops_per_token

    def read(self, device: torch.device, peak_flops: float) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.started, 1e-9)
        sums = torch.tensor([self._tokens, self._flops], dtype=torch.float64, device=device)
        tokens, flops = distributed.sum_over_ranks(sums).tolist()
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        else:
            memory = psutil.Process().memory_info().rss
        return {
            "learning_rate": self.rate,
            "tokens_per_second": tokens / seconds,
            "mfu": flops / seconds / peak_flops,
            "memory_gib": memory / 2**30,
            "data_wait_share": self.waited / seconds,
        }


def _tokens(batch: AnyBatch) -> int:
    if batch.attention_mask is None:
        return batch.input_ids.numel()
    return int(batch.attention_mask.sum())


def _mix(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)
