"""The student: its shape, and its first weights: random, a model's, or chosen ones of the teacher.

student_shape       what the configuration asks for, held to the teacher
make_student        the model; `weight_selection` says how the teacher's weights get smaller
"""

import logging
from typing import Literal, Self

from pydantic import model_validator
from transformers import PreTrainedModel

from distill.matches import layer_map
from distill.weight_selection import select_weights
from lert_ds import model_dir
from lert_ds.architecture import ArchitectureConfig
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.training_data import DataFacts

logger = logging.getLogger(__name__)

_OF_THE_TEACHER = ("hidden_act", "layer_norm_eps", "type_vocab_size", "tie_word_embeddings")
"""What the teacher's weights mean nothing without."""


class StudentConfig(ArchitectureConfig):
    """The shape of the student, and where its first weights come from."""

    size: Literal["large", "base", "small"] = "small"
    """A released shape; the numbers below change single parts of it."""
    model: str | None = None
    """Go on with this model instead: a folder or hub name; a pruned one may be a student too. It
    brings its shape and its weights, so no other key of this table may be set."""
    start: Literal["random", "teacher"] = "random"
    """random: as in pre-training; teacher: from chosen layers of the (first) teacher, and evenly
    spaced units of these where the student is narrower."""
    teacher_layers: Literal["uniform", "last"] | tuple[int, ...] = "uniform"
    """Which layers start=teacher takes: uniform (24 into 12: 2, 4, …, 24), last (the topmost), or a
    list of teacher layers, one a student layer, counted from 1."""

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        fields = type(self).model_fields
        other = [
            key for key in fields if key != "model" and getattr(self, key) != fields[key].default
        ]
        if self.model is not None and other:
            raise ValueError(
                f"model = {self.model!r} brings its shape and weights: take out {', '.join(other)}"
            )
        if self.start == "random" and "teacher_layers" in other:
            raise ValueError(
                f"teacher_layers = {self._named_layers()}: only start = 'teacher' takes any; "
                "set that or take teacher_layers out"
            )
        if isinstance(self.teacher_layers, tuple):
            if len(self.teacher_layers) != self.number("layers"):
                raise ValueError(
                    f"teacher_layers = {self._named_layers()}: {len(self.teacher_layers)} layers "
                    f"for a student of {self.number('layers')}; name one a student layer"
                )
            if min(self.teacher_layers) < 1:
                raise ValueError(f"teacher_layers = {self._named_layers()}: layers count from 1")
        return self

    def _named_layers(self) -> str:
        layers = self.teacher_layers
        return repr(layers) if isinstance(layers, str) else str(list(layers))


def student_shape(
    config: StudentConfig, teacher: LertConfig, facts: DataFacts, tasks: tuple[str, ...]
) -> LertConfig:
    """Return the student's configuration, with a linguistic head for each of `tasks` with tags.

    Args:
        config: What the user asks for.
        teacher: Of the first teacher: it may be pruned.
        facts: Of the corpus: its vocabulary and tags are read.
        tasks: The linguistic tasks.

    Raises:
        ConfigError: the student cannot take from this teacher what it shall, or has another
            vocabulary; the message names the key.
        ModelError: `student.model` cannot be read.
    """
    shape = config.model_config_for(facts, tasks)
    if config.model is not None:
        tag_sets = shape.tag_sets
        shape = model_dir.read_config(model_dir.resolve(config.model))
        shape.tag_sets = tag_sets
    elif config.start == "teacher":
        for key in _OF_THE_TEACHER:
            setattr(shape, key, getattr(teacher, key))
    if shape.vocab_size != teacher.vocab_size:
        source = "the corpus" if config.model is None else f"student.model = {config.model!r}"
        raise ConfigError(
            f"{source} has a vocabulary of {shape.vocab_size} pieces and the teacher one of "
            f"{teacher.vocab_size}; student, teacher and corpus need one tokenizer"
        )
    if config.start == "teacher":
        _refuse_what_the_teacher_lacks(config, shape, teacher)
    return shape


def chosen_layers(config: StudentConfig, teacher: LertConfig) -> tuple[int, ...]:
    """Return the teacher's layer for each layer of a student with start=teacher, from 1."""
    if isinstance(config.teacher_layers, tuple):
        return config.teacher_layers
    layers = config.number("layers")
    return tuple(
        number
        for number, _ in layer_map(
            config.teacher_layers, layers, teacher.num_hidden_layers, "student.teacher_layers"
        )
    )


def make_student(
    config: StudentConfig, shape: LertConfig, teacher: PreTrainedModel
) -> PreTrainedModel:
    """Return the student with its first weights, float32 and on the CPU.

    What is random is drawn from torch's generator: seed it alike on every process.

    Args:
        config: What `shape` was made of.
        shape: What `student_shape` returned for this teacher.
        teacher: The first teacher: the student is of its class. It is read with start=teacher only,
            and nothing of it is shared with the student. Its weights have to be whole; give it
            before it is cast to bfloat16, which rounds what the student takes.

    Raises:
        ModelError: `student.model` cannot be loaded.
    """
    cls = type(teacher)
    if config.model is not None:
        loaded: PreTrainedModel
        if cls is LertForPreTraining:
            loaded, _ = model_dir.load(config.model, cls, shape.tag_sets or {})
        else:
            names = {"id2label": shape.id2label, "label2id": shape.label2id}
            loaded, _ = model_dir.load(config.model, cls, **names)
        return loaded
    student = cls(shape)
    if config.start == "teacher":
        layers = chosen_layers(config, teacher.config)
        fresh = select_weights(student, teacher, layers)
        logger.info(
            "student: starts from layers %s of the teacher%s",
            ", ".join(map(str, layers)),
            f"; random, for the teacher has other tags: {', '.join(fresh)}" if fresh else "",
        )
    return student


def _refuse_what_the_teacher_lacks(
    config: StudentConfig, shape: LertConfig, teacher: LertConfig
) -> None:
    otherwise = "or set student.start=random"
    dimensions = {
        "layers": (shape.num_hidden_layers, teacher.num_hidden_layers),
        "hidden_size": (shape.hidden_size, teacher.hidden_size),
        "positions": (shape.max_position_embeddings, teacher.max_position_embeddings),
    }
    for key, (ours, theirs) in dimensions.items():
        if ours > theirs:
            raise ConfigError(
                f"student.{key} = {ours}, but the teacher has only {theirs} to take; set "
                f"student.{key}={theirs} or less, {otherwise}"
            )
    head_size = shape.hidden_size // shape.num_attention_heads
    their_head_size = teacher.hidden_size // teacher.num_attention_heads
    if head_size > their_head_size:
        raise ConfigError(
            f"student.heads = {shape.num_attention_heads} makes heads of {head_size} units, but "
            f"those of the teacher have only {their_head_size} to take; set more student.heads, "
            f"{otherwise}"
        )
    for number in chosen_layers(config, teacher):
        if number > teacher.num_hidden_layers:
            raise ConfigError(
                f"student.teacher_layers names layer {number}, but the teacher has "
                f"{teacher.num_hidden_layers}"
            )
        parts = {
            "heads": (shape.num_attention_heads, teacher.heads_of(number - 1)),
            "intermediate_size": (
                shape.intermediate_size,
                teacher.intermediate_size_of(number - 1),
            ),
        }
        for key, (ours, theirs) in parts.items():
            if ours > theirs:
                raise ConfigError(
                    f"student.{key} = {ours}, but layer {number} of the teacher has only {theirs} "
                    f"to take; set a smaller student.{key}, take other layers with "
                    f"student.teacher_layers, {otherwise}"
                )
