"""What `lert-ds finetune` can be asked for."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lert_ds.finetune.settings import TaskConfig
from lert_ds.train.optim import OptimizerConfig
from lert_ds.train.schedule import ScheduleConfig
from lert_ds.train.trainer import TrainConfig
from lert_ds.training_run import TrainingRun

BY_THE_MACHINE = Path("auto")


class FinetuneOptimizer(OptimizerConfig):
    """The optimizer of a run of few steps."""

    bias_correction: bool = True
    """Without it such a run fails now and then (Mosbach et al. 2021, arXiv 2006.04884; Zhang et al.
    2021, arXiv 2006.05987)."""


class FinetuneSchedule(ScheduleConfig):
    """The learning rate over a run of few steps."""

    warmup_share: float | None = 0.1
    """The warm-up as a share of all steps, in the place of warmup_steps, which null brings back."""


class FinetuneRun(TrainingRun):
    """Configuration of `lert-ds finetune`."""

    model: str = ""
    """Model folder or hub name to start from: a LERT, or any Chinese BERT."""
    task: TaskConfig
    """The task, its files, and how they become rows."""
    seeds: Annotated[tuple[int, ...], Field(strict=False)] = (1, 2, 3, 4, 5)
    """Runs, each with its own order, dropout and first weights of the head; the best one's model
    stays. LERT's paper takes the best and the mean of ten."""
    evaluations_per_epoch: int = Field(1, ge=1)
    """How often the weights are judged on the dev file; those that did best there are the result.
    A checkpoint is saved as often, unless train.save_every=0."""
    choose: Literal["best", "last"] = "best"
    """Which weights are the result: those that did best on the dev file, or the last ones."""
    keep_models: bool = False
    """Keep the model of every seed, not only the best one's."""
    deepspeed: Path = BY_THE_MACHINE
    """DeepSpeed's JSON; auto: ZeRO-1 on GPUs, ZeRO-2 on processors, in bf16 where the machine
    multiplies it itself."""
    optimizer: FinetuneOptimizer = FinetuneOptimizer()
    """The optimizer."""
    schedule: FinetuneSchedule = FinetuneSchedule()
    """The learning rate over the run: a tenth of it warms up, then it falls to 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model:
            raise ValueError("model is missing; name a model folder or a name on the hub")
        for key in ("evaluate_every", "save_every"):
            if getattr(self.train, key) not in (0, TrainConfig.model_fields[key].default):
                raise ValueError(
                    f"train.{key} = {getattr(self.train, key)}: evaluations_per_epoch says how "
                    "often here; take it out"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: give one or more, each once")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds = {list(self.seeds)}: each must be 0 or more")
        return self
