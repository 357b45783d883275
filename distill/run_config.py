"""The configuration of a training with a teacher: `lert-ds distill`, and `lert-ds recover`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from distill.caching import DEFAULT_TOP_K, CacheLogits, refuse_cache
from distill.distillation_config import DistillationConfig
from distill.student import StudentConfig
from distill.teacher import TeacherPrecision
from lert_ds import training_run
from lert_ds.config import Names, Paths
from lert_ds.finetune.settings import TaskConfig
from lert_ds.pretraining_objective import LipConfig


class TaughtRun(training_run.CorpusRun):
    """The keys that every training with a teacher has."""

    corpus: Paths = ()
    """Corpus folder, or a list of them, to train on."""
    task: TaskConfig | None = None
    """A task to train on, in the place of a corpus: the teacher is a model fine-tuned for it."""
    teacher: Names = ()
    """Model folders or hub names to learn from, one or a list of them."""
    teacher_weights: Annotated[tuple[float, ...], Field(strict=False)] = ()
    """Of several teachers: how much the KD to each counts; by default the same, 1 in all."""
    teacher_precision: TeacherPrecision = "auto"
    """auto: bf16 where the machine multiplies it itself, else fp32; int8: on a CPU, the encoder's
    linear layers."""
    teacher_compile: bool = False
    """Compile the layers of each teacher's encoder."""
    teacher_partitioned: bool = False
    """Keep a piece of each teacher a process (ZeRO-3), for one that no device holds whole."""
    teacher_cache: Path | None = None
    """Folder to keep the teachers' answers in, so that they are asked once for each masked
    instance: the masks of an epoch come round again. Any run with the same teachers, corpus,
    masking and seed may use it."""
    teacher_cache_logits: CacheLogits = "auto"
    """top: the largest of each masked position, and the mass of the others; bytes: all, in 8 bits;
    exact: all, and everything else, in float32; auto: top up to a temperature of 2, else bytes."""
    teacher_cache_top_k: int = Field(DEFAULT_TOP_K, ge=1)
    """How many of the largest."""
    teacher_cache_masks: int = Field(1, ge=1)
    """Epochs until the masks come round again; in each of them the teachers are asked."""
    distillation: DistillationConfig = DistillationConfig()
    """What is learnt from the teacher: TextBrewer's configuration, and what LERT adds to it."""
    lip: LipConfig = LipConfig()
    """Linguistic tasks, and how their weights grow."""

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if bool(self.corpus) == (self.task is not None):
            raise ValueError(
                "corpus and task are both given; keep one of them"
                if self.corpus
                else "corpus is missing; name a corpus folder, or a task to distil on"
            )
        return self

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.teacher_precision == "int8":
            for key in ("teacher_compile", "teacher_partitioned"):
                if getattr(self, key):
                    raise ValueError(
                        f"{key} = true and teacher_precision = int8: layers of int8 are kernels "
                        f"already, whole on each process; leave out {key}"
                    )
        return self

    @model_validator(mode="after")
    def _check_documents(self) -> Self:
        of_pairs = {"attention", "qkv"}
        matched = {match.feature for match in self.distillation.intermediate_matches}
        if not self.attend_across_documents and (matched := matched & of_pairs):
            raise ValueError(
                f"attend_across_documents = false and a match of feature = {min(matched)}: it "
                "compares pairs of tokens of all documents of an instance; match hidden states, "
                "or leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.teacher_cache is not None:
            refuse_cache(
                self.distillation,
                self.teacher_cache_logits,
                {
                    "task": self.task is not None,
                    "teacher_partitioned": self.teacher_partitioned,
                    "train.lengths": bool(self.train.lengths),
                },
            )
        return self


class DistillRun(TaughtRun):
    """Configuration of `lert-ds distill`."""

    teacher: Names
    """Model folder or hub name to learn from, or a list of them."""
    student: StudentConfig = StudentConfig()
    """Its shape and its first weights."""
    labels_only: bool = False
    """Train the same student without its teacher, for comparison: same start, batches, dropout."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.teacher:
            raise ValueError("teacher is empty; name a model folder")
        given = len(self.teacher_weights)
        if given and given != len(self.teacher):
            raise ValueError(
                f"teacher_weights has {given} numbers for {len(self.teacher)} teachers; "
                "give each one"
            )
        if min(self.teacher_weights, default=1) < 0 or (given and not sum(self.teacher_weights)):
            raise ValueError("teacher_weights: no weight may be below 0, nor all of them 0")
        return self

    def weights_of_teachers(self) -> tuple[float, ...]:
        """Return the weight of each teacher's KD."""
        return self.teacher_weights or (1 / len(self.teacher),) * len(self.teacher)
