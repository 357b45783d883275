"""Where the numbers of a run go: metrics.jsonl always, the terminal, and trackers when asked."""

import logging
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lert_ds.config import Config
from lert_ds.errors import ConfigError
from lert_ds.files import write_whole
from lert_ds.redaction import redact, redact_tree
from lert_ds.train.metrics import Record, report_line

logger = logging.getLogger(__name__)


WANDB_ID = "wandb-id"
"""File in a run folder that names its run at Weights & Biases."""


class TrackingConfig(Config):
    """Trackers beside metrics.jsonl, which is always written."""

    wandb: Literal["off", "online", "offline"] = "off"
    """Weights & Biases; offline runs are uploaded later with `wandb sync`."""
    project: str = "lert-ds"
    """The project at Weights & Biases."""
    name: str | None = None
    """The run's name there; by default that of the output folder."""
    tensorboard: bool = False
    """Write event files for TensorBoard under the run folder."""


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at optimizer step `step`."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class _WandbTracker:
    def __init__(self, config: TrackingConfig, folder: Path, run: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f'tracking.wandb = "{config.wandb}": pip install "lert-ds[tracking]" first'
            ) from error
        # A resumed run goes on as the same run there: its id stays in the run folder.
        identity = folder / WANDB_ID
        if not identity.is_file():
            write_whole(identity, lambda file: file.write(secrets.token_hex(8).encode()))
        self._run = wandb.init(
            id=identity.read_text("utf-8"),
            project=config.project,
            name=redact(config.name or folder.name),
            dir=str(folder),
            mode=config.wandb,  # type: ignore[arg-type]
            config=redact_tree(run),
            resume="allow",
            # The command line, the patch of what is not committed, the remote's address: each may
            # hold what is secret, and none is redacted there.
            settings=wandb.Settings(disable_git=True, disable_code=True, x_disable_meta=True),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoardTracker:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                'tracking.tensorboard = true: pip install "lert-ds[tracking]" first'
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Reporter:
    """Rank 0's voice: lines or a progress bar, metrics.jsonl, trackers. Elsewhere it is silent."""

    def __init__(
        self, config: TrackingConfig, folder: Path, steps: int, run: Mapping[str, Any], main: bool
    ) -> None:
        """Open what `config` asks for, on the main process only."""
        self._main, self._step = main, 0
        self._trackers: list[Tracker] = []
        self._progress: Progress | None = None
        if not main:
            return
        self._record = Record(folder / "metrics.jsonl")
        if config.wandb != "off":
            self._trackers.append(_WandbTracker(config, folder, run))
        if config.tensorboard:
            self._trackers.append(_TensorBoardTracker(folder))
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task("training", total=steps)
            self._progress.start()

    def report(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of training ("train") or of evaluation ("valid") at `step`."""
        if not self._main:
            return
        self._record.append(report_line(kind, step, values))
        for tracker in self._trackers:
            tracker.log({f"{kind}/{name}": value for name, value in values.items()}, step)
        self._say(f"{kind:5} step {step}  {_readable(values)}")

    def event(self, step: int, message: str) -> None:
        """Record something that happened once."""
        if not self._main:
            return
        self._record.append(report_line("event", step, {"message": message}))
        self._say(f"step {step}: {message}")

    def record(self, message: str) -> None:
        """Record an event in metrics.jsonl alone; any thread may."""
        if self._main:
            self._record.append(report_line("event", self._step, {"message": message}))

    def advance(self, step: int) -> None:
        """Tell that `step` steps are done; the progress bar shows it."""
        self._step = step
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """End the bar and the trackers."""
        if self._progress is not None:
            self._progress.stop()
        for tracker in self._trackers:
            tracker.close()

    def _say(self, line: str) -> None:
        if self._progress is not None:
            self._progress.console.print(redact(line), highlight=False, markup=False)
        else:
            logger.info(line)


_SHOWN = (
    "loss", "mlm/loss", "mlm/accuracy", "mlm/perplexity", "pos/accuracy", "ner/accuracy",
    "dep/accuracy", "accuracy", "em", "f1", "learning_rate", "tokens_per_second", "mfu",
)  # fmt: skip


def _readable(values: Mapping[str, float]) -> str:
    shown = [name for name in _SHOWN if name in values] or list(values)
    return "  ".join(f"{name} {_short(values[name])}" for name in shown)


def _short(value: float) -> str:
    """Return four digits of a number, and large ones without an exponent."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
