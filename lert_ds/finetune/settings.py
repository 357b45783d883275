"""What can be asked of a task: where its files are, and how they become features."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from lert_ds.config import Config


class TaskConfig(Config):
    """A task and its files."""

    name: str
    """Which one: cmrc2018, drcd, chnsenticorp, tnews, xnli, ocnli, lcqmc, bq, msra, peopledaily."""
    data: Path = Path("tasks")
    """Folder of the task's files, or the folder above it, which has one named after each task."""
    train: Path | None = None
    """File to train on, under `data` or anywhere; by default the name that its owners gave it."""
    dev: Path | None = None
    """File to choose the best weights on."""
    test: Path | None = None
    """File to evaluate the best weights on."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Of the training examples, the share to choose on where there is no dev file: every tenth."""
    max_length: int = Field(512, ge=16)
    """Tokens of the longest row; no more than the model has positions."""
    stride: int = Field(128, ge=0)
    """Tokens that two windows of a long context have in common."""
    question_length: int = Field(64, ge=1)
    """Of a question, the tokens that are read."""
    answer_length: int = Field(64, ge=1)
    """Tokens of the longest answer that is given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.name:
            raise ValueError("name is empty; name a task")
        return self
