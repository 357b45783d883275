"""Which layer learns from which: layer maps by name, and matches resolved against the models.

Layer maps count layers from 1. `layer_T` and `layer_S` count as TextBrewer does, which indexes the
lists that its adaptors return: hidden states are the embeddings' (0) and those of layers 1 to n;
attention, and queries, keys and values, are those of the first layer (0) to the last (n - 1).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from distill.distillation_config import (
    EQUAL_HEADS_LOSSES,
    EQUAL_WIDTH_LOSSES,
    GRAM_LOSSES,
    DistillationConfig,
    Feature,
    LayerMap,
    MatchConfig,
    Projection,
)
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError


def layer_map(
    layers: LayerMap, student_layers: int, teacher_layers: int, key: str = "layers"
) -> tuple[tuple[int, int], ...]:
    """Return the pairs (teacher's layer, student's layer) that `layers` stands for, from 1.

    With T layers and S: `uniform` gives the student's layer k the teacher's k · T / S, rounded half
    up (24 to 12: 2, 4, …, 24); `last` gives it k + T - S. Pairs are returned as they are.

    Args:
        layers: `uniform`, `last`, or pairs; in these 0 stands for the embeddings.
        student_layers: S, 1 or more.
        teacher_layers: T, 1 or more.
        key: Opens the message of an error.

    Raises:
        ConfigError: a layer that does not exist, or `last` for a student that is the deeper one.
    """
    if layers == "uniform":
        # At least 1: a teacher under half as deep would else give its embeddings.
        return tuple(
            (max(1, (2 * k * teacher_layers + student_layers) // (2 * student_layers)), k)
            for k in range(1, student_layers + 1)
        )
    if layers == "last":
        if student_layers > teacher_layers:
            raise ConfigError(
                f'{key} = "last": the student has {student_layers} layers, more than the '
                f'{teacher_layers} of the teacher; write "uniform" or pairs of layers'
            )
        return tuple((k + teacher_layers - student_layers, k) for k in range(1, student_layers + 1))
    assert not isinstance(layers, str), layers
    for pair in layers:
        counts = (("teacher", teacher_layers), ("student", student_layers))
        for layer, (who, count) in zip(pair, counts, strict=True):
            if not 0 <= layer <= count:
                raise ConfigError(
                    f"{key} has {list(pair)}, but the {who} has no layer {layer}: "
                    f"it has {count}, counted from 1"
                )
    return layers


def layers_of(match: MatchConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers that a resolved match reads, (teacher's, student's): one each, or two."""
    assert match.layer_T is not None, "not resolved"
    assert match.layer_S is not None, "not resolved"
    teacher, student = (
        layer if isinstance(layer, tuple) else (layer,) for layer in (match.layer_T, match.layer_S)
    )
    return teacher, student


def resolve(
    config: DistillationConfig, student: LertConfig, teachers: Sequence[LertConfig]
) -> DistillationConfig:
    """Return `config` with every match in full: what it stands for, held to the models.

    Each match has layer numbers of 0 or more and no `layers`; a projection has its widths and
    options; where a match needs `relation_heads`, it is filled in. What is resolved stays as it is.

    Raises:
        ConfigError: a match that these models cannot have; the message opens with its key, counted
            from 0.
    """
    matches: list[MatchConfig] = []
    first: dict[_Identity, str] = {}
    for index, match in enumerate(config.intermediate_matches):
        key = f"distillation.intermediate_matches.{index}"
        if match.teacher >= len(teachers):
            raise ConfigError(
                f"{key}.teacher = {match.teacher}: the last teacher is {len(teachers) - 1}, "
                "counted from 0"
            )
        teacher = teachers[match.teacher]
        for single in _expand(match, student, teacher, key):
            _check_heads(single, student, teacher, key)
            single = single.model_copy(
                update={"proj": _resolve_projection(single, student, teacher, key)}
            )
            identity = _Identity(single.teacher, single.feature, single.loss, *layers_of(single))
            if identity in first:
                raise ConfigError(
                    f"{key}: {_describe(single)} is there already, from {first[identity]}; "
                    "keep one of them, with the sum of the weights"
                )
            first[identity] = key
            matches.append(single)
    heads = _resolve_relation_heads(config.relation_heads, matches, student, teachers)
    return config.model_copy(
        update={"intermediate_matches": tuple(matches), "relation_heads": heads}
    )


def check_weights(config: DistillationConfig, labels_only: bool = False) -> None:
    """Refuse a loss that is 0 whatever the student does.

    Args:
        config: The terms of the loss.
        labels_only: The student learns from the labels alone, whatever their weight beside others.

    Raises:
        ConfigError: no term has a weight.
    """
    weights = [config.kd_loss_weight, config.hard_label_weight]
    weights += [match.weight for match in config.intermediate_matches]
    if not labels_only and not any(weights):
        raise ConfigError(
            "distillation.kd_loss_weight and hard_label_weight are 0, and so is the weight of "
            "every match, so there is nothing to learn; set one above 0"
        )


def describe_matches(config: DistillationConfig) -> str:
    """Return a resolved configuration's matches, one a line; layers are counted from 1."""
    several = len({match.teacher for match in config.intermediate_matches} | {0}) > 1
    lines = [
        _describe(match)
        + (f" of teacher {match.teacher}" if several else "")
        + f", weight {match.weight:g}"
        + _describe_projection(match)
        + (f", {config.relation_heads} relation heads" if match.feature == "qkv" else "")
        for match in config.intermediate_matches
    ]
    return "\n".join(lines) or "no layers are matched"


class _Identity(NamedTuple):
    """What tells matches apart in TextBrewer's metrics, and the teacher."""

    teacher: int
    feature: Feature
    loss: str
    teacher_layers: tuple[int, ...]
    student_layers: tuple[int, ...]


def _expand(
    match: MatchConfig, student: LertConfig, teacher: LertConfig, key: str
) -> Iterator[MatchConfig]:
    """Yield the matches that one entry stands for, by TextBrewer's numbers."""
    depths = (student.num_hidden_layers, teacher.num_hidden_layers)
    if match.layers is None:
        update = {
            name: _resolve_layer(getattr(match, name), match.feature, shape, f"{key}.{name}", who)
            for name, shape, who in (
                ("layer_T", teacher, "teacher"),
                ("layer_S", student, "student"),
            )
        }
        yield match.model_copy(update=update)
        return
    offset = _index_of_layer_1(match.feature) - 1
    for pair in layer_map(match.layers, *depths, key=f"{key}.layers"):
        layer_T, layer_S = (
            (layer + offset,) * 2 if match.loss in GRAM_LOSSES else layer + offset for layer in pair
        )
        yield match.model_copy(update={"layers": None, "layer_T": layer_T, "layer_S": layer_S})


def _index_of_layer_1(feature: Feature) -> int:
    return 1 if feature == "hidden" else 0


def _resolve_layer(
    given: int | tuple[int, int], feature: Feature, shape: LertConfig, key: str, who: str
) -> int | tuple[int, ...]:
    """Return the number or numbers with those from the end counted from the start."""
    count = shape.num_hidden_layers + _index_of_layer_1(feature)
    numbers = given if isinstance(given, tuple) else (given,)
    for number in numbers:
        if not -count <= number < count:
            raise ConfigError(
                f"{key} = {number}: the {who} has {shape.num_hidden_layers} layers, "
                f"whose {feature} is numbered 0 to {count - 1}, or -1 to {-count} from the end"
            )
    resolved = tuple(number % count for number in numbers)
    return resolved if isinstance(given, tuple) else resolved[0]


def _check_heads(match: MatchConfig, student: LertConfig, teacher: LertConfig, key: str) -> None:
    """Refuse a layer without attention, and heads to compare that are not as many."""
    if match.feature == "hidden":
        return
    layer_T, layer_S = (layers[0] for layers in layers_of(match))
    heads_T, heads_S = teacher.heads_of(layer_T), student.heads_of(layer_S)
    for who, layer, heads in (("teacher", layer_T, heads_T), ("student", layer_S, heads_S)):
        if heads == 0:
            raise ConfigError(
                f"{key}: layer {layer + 1} of the {who} has no attention heads (it was pruned), "
                f"so it has no {match.feature} to match; take another layer"
            )
    if match.loss in EQUAL_HEADS_LOSSES and heads_T != heads_S:
        raise ConfigError(
            f"{key}.loss = {match.loss} needs as many heads in both, but layer {layer_T + 1} of "
            f"the teacher has {heads_T} and layer {layer_S + 1} of the student {heads_S}; "
            "use attention_ce_mean, or feature = qkv with minilm_relation"
        )


def _resolve_projection(
    match: MatchConfig, student: LertConfig, teacher: LertConfig, key: str
) -> Projection | None:
    widths = (student.hidden_size, teacher.hidden_size)
    if match.proj is None:
        if match.loss in EQUAL_WIDTH_LOSSES and widths[0] != widths[1]:
            raise ConfigError(
                f"{key}: {match.loss} needs equal widths, but the student's hidden states have "
                f'{widths[0]} and the teacher\'s {widths[1]}; add proj = "linear"'
            )
        return None
    if isinstance(match.proj, str):
        return (match.proj, *widths, {})
    if match.proj[1:3] != widths:
        raise ConfigError(
            f"{key}.proj maps {match.proj[1]} to {match.proj[2]}, but the student is {widths[0]} "
            f"wide and the teacher {widths[1]}; "
            f'write "{match.proj[0]}" alone, and the widths are filled in'
        )
    return match.proj


def _resolve_relation_heads(
    given: int | None,
    matches: Sequence[MatchConfig],
    student: LertConfig,
    teachers: Sequence[LertConfig],
) -> int | None:
    """Return the heads of the relations: as given, or the most that all widths allow.

    A width is that of a layer's queries: fewer than the hidden states' where heads were pruned.
    """
    widths: dict[int, str] = {}
    for match in matches:
        if match.feature == "qkv":
            layer_T, layer_S = (layers[0] for layers in layers_of(match))
            teacher = teachers[match.teacher]
            widths.setdefault(_query_width(teacher, layer_T), f"layer {layer_T + 1} of the teacher")
            widths.setdefault(_query_width(student, layer_S), f"layer {layer_S + 1} of the student")
    if not widths:
        return given
    common = math.gcd(*widths)
    if given is None:
        most = min(teachers[0].num_attention_heads, common)
        return next(heads for heads in range(most, 0, -1) if common % heads == 0)
    for width, where in widths.items():
        if width % given:
            raise ConfigError(
                f"distillation.relation_heads = {given} does not divide {width}, the width of the "
                f"queries in {where}; take a divisor of {common}, or leave it out"
            )
    return given


def _query_width(shape: LertConfig, layer: int) -> int:
    width: int = shape.heads_of(layer) * (shape.hidden_size // shape.num_attention_heads)
    return width


def _describe(match: MatchConfig) -> str:
    """Return the loss of a resolved match and the layers it is between."""
    offset = 1 - _index_of_layer_1(match.feature)
    teacher, student = (
        " and ".join(
            f"layer {index + offset}" if index + offset else "embeddings" for index in some
        )
        for some in map(dict.fromkeys, layers_of(match))  # one that is there twice, once
    )
    return f"{match.feature} {match.loss}: student's {student} to teacher's {teacher}"


def _describe_projection(match: MatchConfig) -> str:
    if match.proj is None or isinstance(match.proj, str):
        return ""
    name, student_width, teacher_width, options = match.proj
    told = "".join(f", {key} {value:g}" for key, value in options.items())
    return f", {name} projection {student_width} to {teacher_width}{told}"
