"""What is distilled: a pre-trained model on a corpus, or a fine-tuned one on its task.

Everything that differs between the two stands here; `run.py` asks and does the rest.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from distill.adaptor import Adaptor, PretrainingAdaptor
from distill.student import StudentConfig, student_shape
from distill.task_adaptor import TaskAdaptor
from distill.teacher import Teacher, check_teacher, teacher_lines
from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.corpora import Corpora
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.objective import TaskLoss
from lert_ds.finetune.seed_run import label_names
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import TaskData, open_task
from lert_ds.finetune.task_evaluation import evaluate_model, refuse_other_labels
from lert_ds.labels import TagSets
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.pretraining_objective import LertLoss, LipConfig, train_heads
from lert_ds.training_data import DataFacts, TrainingData

logger = logging.getLogger(__name__)

Lines = dict[str, dict[str, float]]
"""Metric to name to value: what else is known of a metric."""


class Subject(Protocol):
    """What a distillation is about."""

    @property
    def facts(self) -> DataFacts:
        """Of the data."""
        ...

    @property
    def data(self) -> TrainingData:
        """What is learnt from."""
        ...

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """Of teachers and student."""
        ...

    @property
    def best_by(self) -> str | None:
        """The metric whose best weights are the result; None: the last weights are."""
        ...

    def check_teacher(self, source: str) -> LertConfig:
        """Return a teacher's configuration, held to the data.

        Raises:
            ModelError: it cannot teach this.
        """
        ...

    def student_shape(self, config: StudentConfig, teacher: LertConfig) -> LertConfig:
        """Return the student's configuration.

        Raises:
            UserError: it cannot be made.
        """
        ...

    def prepare(self, student: PreTrainedModel) -> None:
        """Freeze what no loss moves."""
        ...

    def adaptor(self, total_steps: int) -> Adaptor:
        """Return what the losses ask of models and batches."""
        ...

    def teacher_lines(self, teachers: Sequence[Teacher], micro_batch_size: int) -> Lines:
        """Return what each teacher itself reaches on the held-out part."""
        ...


@dataclass(frozen=True)
class OnCorpus:
    """A pre-trained teacher, masked text, and LERT's heads."""

    facts: DataFacts
    corpora: Corpora | None
    """None where they are not there yet, for planning ahead."""
    lip: LipConfig
    """With the tasks that the corpus has tags for."""
    task_weights: dict[str, float]
    """Weight of the KD of each linguistic task that the teachers are asked about."""

    model_class: type[PreTrainedModel] = LertForPreTraining
    best_by: str | None = None

    @property
    def data(self) -> Corpora:
        """The corpora."""
        assert self.corpora is not None
        return self.corpora

    def check_teacher(self, source: str) -> LertConfig:
        """Return a teacher's configuration, held to tokenizer, length and tags of the corpus."""
        folder = None if self.corpora is None else self.corpora.tokenizer_folder
        return check_teacher(source, self.facts, folder, self.task_weights)

    def student_shape(self, config: StudentConfig, teacher: LertConfig) -> LertConfig:
        """Return the student's configuration, with a head for each linguistic task."""
        return student_shape(config, teacher, self.facts, self.lip.tasks)

    def prepare(self, student: PreTrainedModel) -> None:
        """Freeze the linguistic heads that are not trained."""
        assert isinstance(student, LertForPreTraining)
        train_heads(student, self.lip.tasks)

    def adaptor(self, total_steps: int) -> Adaptor:
        """Return that of masked batches."""
        return PretrainingAdaptor(LertLoss(self.lip, total_steps), self.task_weights)

    def teacher_lines(self, teachers: Sequence[Teacher], micro_batch_size: int) -> Lines:
        """Return losses and accuracies on the held-out corpus."""
        if self.data.valid is None:
            return {}
        batches = [self.data.evaluation(micro_batch_size) for _ in teachers]
        tag_sets: TagSets = {str(task): self.data.train.tag_sets[task] for task in self.lip.tasks}
        return teacher_lines(teachers, batches, tag_sets)


@dataclass(frozen=True)
class OnTask:
    """A fine-tuned teacher and the examples of its task."""

    data: TaskData

    @classmethod
    def open(cls, settings: TaskConfig, tokenizer_of: str) -> "OnTask":
        """Open a task in the tokenizer of a model: the student's, where that is given."""
        folder = model_dir.resolve(tokenizer_of)
        return cls(open_task(settings, folder, model_dir.read_config(folder)))

    @property
    def facts(self) -> DataFacts:
        """Of the task's features."""
        return self.data.facts

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """With the task's head."""
        return KINDS[self.data.task.kind].model

    @property
    def best_by(self) -> str:
        """The task's score."""
        return self.data.task.score

    def check_teacher(self, source: str) -> LertConfig:
        """Return a teacher's configuration, held to the tokenizer, the length and the labels."""
        config = check_teacher(source, self.facts, self.data.tokenizer_folder, ())
        refuse_other_labels(source, config.id2label, self.data.task)
        return config

    def student_shape(self, config: StudentConfig, teacher: LertConfig) -> LertConfig:
        """Return the student's configuration, with the task's labels."""
        shape = student_shape(config, teacher, self.facts, ())
        shape.tag_sets = None
        names = label_names(self.data.task)
        shape.id2label, shape.label2id = names["id2label"], names["label2id"]
        return shape

    def prepare(self, student: PreTrainedModel) -> None:
        """Pass: every head is trained."""

    def adaptor(self, total_steps: int) -> Adaptor:
        """Return that of the task's batches."""
        return TaskAdaptor(TaskLoss(self.data.task.kind))

    def teacher_lines(self, teachers: Sequence[Teacher], micro_batch_size: int) -> Lines:
        """Return the task's metrics of each teacher on the dev file."""
        found: Lines = {}
        for number, teacher in enumerate(teachers, start=1):
            name = "teacher" if len(teachers) == 1 else f"teacher {number}"
            values, _ = evaluate_model(teacher.model, self.data, self.data.dev)
            for metric, value in values.items():
                found.setdefault(metric, {})[name] = value
            told = "  ".join(f"{metric} {value:.4g}" for metric, value in values.items())
            logger.info("%s %s on the dev file: %s", name, teacher.source, told)
        return found
