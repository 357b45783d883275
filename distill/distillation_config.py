"""What a student learns from its teachers: TextBrewer's configuration language, in TOML.

The keys, their defaults and the names they take are those of TextBrewer 0.2.1 (`DistillationConfig`
and `intermediate_matches`; Yang et al. 2020, arXiv 2002.12620). Ours are `kl`,
`temperature_squared`, `pos`, `ner`, `dep`, `relation_heads`, the feature `qkv` with its loss
`minilm_relation`, and a match's `layers` and `teacher`.
"""

import math
from typing import Annotated, Any, Literal, Self, TypeGuard, get_args

from pydantic import BeforeValidator, model_validator

from lert_ds.config import Config

Feature = Literal["hidden", "attention", "qkv"]
MatchLoss = Literal[
    "hidden_mse",
    "cos",
    "pkd",
    "fsp",
    "gram",
    "nst",
    "mmd",
    "attention_mse",
    "attention_mse_sum",
    "attention_ce",
    "attention_ce_mean",
    "minilm_relation",
]
ProjectionName = Literal["linear", "relu", "tanh"]
Projection = tuple[ProjectionName, int, int, dict[Literal["lr", "weight_decay"], float]]
"""Name, the student's width, the teacher's, and what is different for its parameters."""
WeightScheduler = Literal["none", "linear_decay", "linear_growth"]
TemperatureScheduler = Literal["none", "constant"] | tuple[Literal["flsw"], float, float]

GRAM_LOSSES: frozenset[MatchLoss] = frozenset({"fsp", "gram", "nst", "mmd"})
"""Losses of products of two layers: they take lists of two."""
EQUAL_WIDTH_LOSSES: frozenset[MatchLoss] = frozenset({"hidden_mse", "cos", "pkd", "fsp", "gram"})
"""Losses that compare hidden states unit by unit."""
EQUAL_HEADS_LOSSES: frozenset[MatchLoss] = frozenset(
    {"attention_mse", "attention_mse_sum", "attention_ce"}
)
"""Losses that compare attention head by head, or sums over the heads, which grow with them."""


def losses_of(feature: Feature) -> tuple[MatchLoss, ...]:
    """Return the losses that can be taken of a feature."""
    names: tuple[MatchLoss, ...] = get_args(MatchLoss)
    if feature == "qkv":
        return ("minilm_relation",)
    return tuple(
        name
        for name in names
        if name != "minilm_relation" and name.startswith("attention") == (feature == "attention")
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_whole_numbers(values: tuple[object, ...], count: int) -> bool:
    return len(values) == count and all(type(value) is int for value in values)


# These read a value whole, so that one sentence says what is wrong with it, where pydantic would
# complain once for every branch of the union. Tuples: after them its strict mode takes no list.


def _as_scheduler(value: Any) -> object:
    kind, *numbers = value if isinstance(value, list | tuple) and value else [value]
    if kind == "cwsm":
        raise ValueError(
            "cwsm gives temperatures below 0 over a whole vocabulary; "
            'write ["flsw", beta, gamma], or "none"'
        )
    if kind in ("none", "constant") and value == kind:
        return kind
    if kind != "flsw" or len(numbers) != 2 or not all(_is_number(n) for n in numbers):
        raise ValueError(
            f'{_toml(value)} is no scheduler; write "none", "constant" or ["flsw", beta, gamma], '
            'such as ["flsw", 1, 2]'
        )
    if numbers[1] < 0 or numbers[1] % 1:
        # Where student and teacher agree, rounding gives a base just below 0.
        raise ValueError(
            f"gamma = {numbers[1]} raises numbers to it that may fall below 0; "
            "give a whole number, such as 2"
        )
    return (kind, *numbers)


def _as_layer(value: object) -> object:
    value = tuple(value) if isinstance(value, list) else value
    if value is None or type(value) is int:
        return value
    if isinstance(value, tuple) and _are_whole_numbers(value, 2):
        return value
    raise ValueError(
        f"{_toml(value)} is no layer; give its number, or a list of two for "
        f"{', '.join(sorted(GRAM_LOSSES))}"
    )


def _as_layer_map(value: object) -> object:
    if value is None or value in ("uniform", "last"):
        return value
    if isinstance(value, list | tuple) and value:
        pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in value]
        if all(_are_whole_numbers(pair, 2) for pair in pairs):
            return tuple(pairs)
    raise ValueError(
        f'{_toml(value)} is no map of layers; write "uniform", "last" or a list of '
        "[teacher, student] layers, such as [[2, 1], [4, 2]]"
    )


def _as_projection(value: object) -> object:
    if value is None or value in get_args(ProjectionName):
        return value
    parts = tuple(value) if isinstance(value, list | tuple) else ()
    if len(parts) == 3:
        parts = (*parts, {})
    if len(parts) != 4 or parts[0] not in get_args(ProjectionName):
        parts = ()
    if not parts or not _are_whole_numbers(parts[1:3], 2) or not isinstance(parts[3], dict):
        names = ", ".join(f'"{name}"' for name in get_args(ProjectionName))
        raise ValueError(
            f"{_toml(value)} is no projection; write one of {names}, or a list such as "
            '["linear", student width, teacher width, {lr = 5e-3}]'
        )
    for name, number in parts[3].items():
        if name not in ("lr", "weight_decay"):
            raise ValueError(f"unknown {name} in {_toml(parts[3])} (there are: lr, weight_decay)")
        if not _is_number(number) or number < 0:
            raise ValueError(f"{name} = {_toml(number)}: must be 0 or more")
    return parts


def _toml(value: object) -> str:
    """Return a value as it stands in a TOML file."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


LayerNumber = Annotated[int | tuple[int, int] | None, BeforeValidator(_as_layer)]
LayerMap = Literal["uniform", "last"] | tuple[tuple[int, int], ...]
"""A name, or pairs of a teacher's layer and the student's, counted from 1."""


class MatchConfig(Config):
    """A loss between a feature of the student and the same of a teacher."""

    feature: Feature
    """hidden: states; attention: probabilities; qkv: queries, keys and values."""
    loss: MatchLoss
    """hidden: hidden_mse, cos, pkd, fsp = gram, nst = mmd; attention: attention_mse,
    attention_mse_sum, attention_ce, attention_ce_mean; qkv: minilm_relation (arXiv 2012.15828)."""
    weight: float = 1.0
    """Of this loss in the sum; attention_mse is around 1e-4 and needs hundreds."""
    layer_T: LayerNumber = None
    """The teacher's layer as TextBrewer counts: hidden 0 is the embeddings and k layer k; attention
    and qkv 0 is the first layer; -1 is the last. A list of two for fsp, gram, nst and mmd."""
    layer_S: LayerNumber = None
    """The student's layer, counted likewise."""
    layers: Annotated[LayerMap | None, BeforeValidator(_as_layer_map)] = None
    """Instead of the two, many matches: "uniform" (24 layers to 12: 2, 4, … 24), "last", or a list
    of [teacher, student] layers, all counted from 1 (hidden: 0 is the embeddings). The losses of
    two layers get each layer twice, as in TextBrewer's examples."""
    proj: Annotated[ProjectionName | Projection | None, BeforeValidator(_as_projection)] = None
    """Learnt map from the student's width to the teacher's: linear, relu or tanh, or TextBrewer's
    list ["linear", student width, teacher width, {lr = 5e-3, weight_decay = 0.0}]."""
    teacher: int = 0
    """Which of several teachers, from 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        fitting = losses_of(self.feature)
        if self.loss not in fitting:
            raise ValueError(
                f"loss = {self.loss} is not of feature = {self.feature}, "
                f"which has {', '.join(fitting)}"
            )
        if self.proj is not None and self.feature != "hidden":
            raise ValueError(
                f"proj is for feature = hidden, which {self.feature} is not; leave it out"
            )
        _require_weight("weight", self.weight)
        if self.teacher < 0:
            raise ValueError(f"teacher = {self.teacher}: count teachers from 0")
        if self.layers is None:
            self._check_layer_numbers()
        elif (self.layer_T, self.layer_S) != (None, None):
            raise ValueError("layers stands for layer_T and layer_S; give the one or the others")
        elif not isinstance(self.layers, str):
            self._check_pairs(self.layers)
        return self

    def _check_layer_numbers(self) -> None:
        for key in ("layer_T", "layer_S"):
            value = getattr(self, key)
            if value is None:
                raise ValueError(f'{key} is missing; or give layers, such as layers = "uniform"')
            if isinstance(value, tuple) != (self.loss in GRAM_LOSSES):
                wanted = "a list of two layers" if self.loss in GRAM_LOSSES else "one layer"
                raise ValueError(f"{key} = {_toml(value)}: {self.loss} needs {wanted}")

    def _check_pairs(self, pairs: tuple[tuple[int, int], ...]) -> None:
        first = 0 if self.feature == "hidden" else 1
        for pair in pairs:
            if min(pair) < first:
                embeddings = "; 0 is the embeddings" if self.feature == "hidden" else ""
                raise ValueError(
                    f"layers has {list(pair)}: {self.feature} counts from {first} here{embeddings}"
                )


class DistillationConfig(Config):
    """The terms of the loss: logits (KD), labels, and features between the layers."""

    temperature: float = 4.0
    """Divides the logits of both before their softmax; above 1 softens them."""
    temperature_scheduler: Annotated[TemperatureScheduler, BeforeValidator(_as_scheduler)] = "none"
    """none, constant, or ["flsw", beta, gamma]: a temperature of its own at each position, lower
    where student and teacher disagree (arXiv 1911.07471)."""
    kd_loss_type: Literal["ce", "mse", "kl"] = "ce"
    """ce: cross entropy with the teacher; kl: the same less the teacher's entropy, 0 where they
    agree; mse: of the logits over the temperature."""
    temperature_squared: bool = False
    """Times temperature², so that it leaves the gradient its size (arXiv 1503.02531)."""
    kd_loss_weight: float = 1.0
    """Of the KD losses in the sum."""
    kd_loss_weight_scheduler: WeightScheduler = "none"
    """Times the weight: linear_decay from 1 to 0 over the run, linear_growth from 0 to 1."""
    hard_label_weight: float = 0.0
    """Of LERT's own loss on the labels."""
    hard_label_weight_scheduler: WeightScheduler = "none"
    """As that of the KD losses."""
    probability_shift: bool = False
    """Swap the teacher's largest logit with that of the label, so that it is never wrong."""
    is_caching_logits: bool = False
    """Only false: batches are masked anew each time, so the teacher's logits differ."""
    pos: float = 1.0
    """Of the KD on POS logits, beside 1 for MLM's and times its LIP weight; 0 leaves it out."""
    ner: float = 1.0
    """The same of NER."""
    dep: float = 1.0
    """The same of DEP."""
    relation_heads: int | None = None
    """Heads that minilm_relation parts queries, keys and values into; by default the first
    teacher's, or fewer where that does not divide the widths."""
    intermediate_matches: tuple[MatchConfig, ...] = ()
    """Losses between layers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}: must be above 0")
        for key in ("kd_loss_weight", "hard_label_weight", "pos", "ner", "dep"):
            _require_weight(key, getattr(self, key))
        for key in ("kd_loss_weight", "hard_label_weight"):
            if getattr(self, f"{key}_scheduler") != "none" and getattr(self, key) == 0:
                raise ValueError(
                    f"{key}_scheduler = {getattr(self, f'{key}_scheduler')} multiplies {key}, "
                    f"which is 0; set {key} to 1"
                )
        if self.is_caching_logits:
            raise ValueError(
                "is_caching_logits = true would keep every batch in memory with one masking for "
                "all passes; leave it out, the teacher runs beside the student"
            )
        if self.relation_heads is not None and self.relation_heads < 1:
            raise ValueError(f"relation_heads = {self.relation_heads}: must be 1 or more")
        return self


def _require_weight(key: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{key} = {value}: must be 0 or more")
