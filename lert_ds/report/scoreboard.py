"""TensorFlow's names of BERT's weights and ours: one entry a weight, and everything accounted for.

    bert/encoder/layer_0/attention/self/query/kernel   [hidden, hidden]
    → bert.encoder.layer.0.attention.self.query.weight, transposed: TensorFlow's are [in, out]

    cls/predictions/output_pos_layer/kernel            [hidden, 28]
    → cls.predictions.output_pos.weight, transposed

Names and layouts: `src/modeling.py` and `src/run_pretraining.py` of ymcui/LERT, where every kernel
is made by `tf.layers.dense`; those of Google's BERT, RoBERTa-wwm, MacBERT and PERT are the same.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ModelError
from lert_ds.labels import TASKS

Shape = tuple[int, ...]

ENCODER, POOLER, MLM = "encoder", "pooler", "MLM head"

_NEXT_SENTENCE = "next-sentence head, which LERT lacks"
_LEFT_OUT_VARIABLES = {
    r"(.*/)?(adam_[mv]|lamb_[mv]|Adam(_1)?)|global_step|beta[12]_power": "state of the optimizer",
    r"cls/seq_relationship/output_(weights|bias)": _NEXT_SENTENCE,
}
_LEFT_OUT_PARAMETERS = {
    r"(classifier|qa_outputs)\.(weight|bias)": "head of a fine-tuned task",
    r"cls\.seq_relationship\.(weight|bias)": _NEXT_SENTENCE,
}
_OTHER_ARCHITECTURES = {
    r"(electra|generator|discriminator_predictions|generator_predictions)[/.]": "an ELECTRA",
    r"bert/encoder/(transformer|embedding_hidden_mapping_in)/|albert\.": "an ALBERT",
    r".*\.ATTRIBUTES/|_CHECKPOINTABLE_OBJECT_GRAPH": "a TensorFlow 2 object",
    r"output_(weights|bias)|loss/": "a fine-tuned BERT",
}


class Entry(NamedTuple):
    """One weight under both of its names."""

    variable: str
    """TensorFlow's."""
    parameter: str
    """Ours, in `model.safetensors`."""
    shape: Shape
    """Of the variable."""
    keys: tuple[str, ...]
    """The key of the configuration that each number of the shape comes from."""
    part: str
    """`encoder`, `pooler`, `MLM head`, or a linguistic task."""

    @property
    def transposed(self) -> bool:
        """Whether the parameter is the variable transposed: TensorFlow's kernels are [in, out]."""
        return self.variable.endswith("/kernel")

    @property
    def parameter_shape(self) -> Shape:
        """Shape of the parameter."""
        return self.shape[::-1] if self.transposed else self.shape


class Match(NamedTuple):
    """What of some weights becomes what, and what does not."""

    entries: tuple[Entry, ...]
    """What is mapped."""
    left_out: dict[str, str]
    """Name of everything else that is there to the reason."""
    missing: tuple[str, ...]
    """Parts of a LERT that are not there."""


class Names(NamedTuple):
    """What messages call the two files that have to be of one model."""

    weights: str
    configuration: str


def entries(config: LertConfig) -> tuple[Entry, ...]:
    """Return the entry of every weight that a LERT of this shape can have, in one order."""
    sizes = {key: int(getattr(config, key)) for key in _SIZES}
    sizes |= {f"tag_sets.{task}": len((config.tag_sets or {})[task]) for task in config.tasks}
    return tuple(
        Entry(variable, parameter, tuple(sizes[key] for key in keys), keys, part)
        for variable, parameter, keys, part in _named(config.num_hidden_layers, config.tasks)
    )


def tasks_of(variables: Iterable[str]) -> tuple[str, ...]:
    """Return the linguistic tasks that a checkpoint's variables hold a head of."""
    heads = (re.fullmatch(r"cls/predictions/output_(\w+)_layer/kernel", name) for name in variables)
    return tuple(sorted(head[1] for head in heads if head))


def match_variables(found: Mapping[str, Shape], config: LertConfig, names: Names) -> Match:
    """Account for every variable of a TensorFlow checkpoint.

    Args:
        found: Name of each variable to its shape.
        config: What the configuration beside it says; its tag sets are those of the heads there.
        names: What to call the two in a message.

    Raises:
        ModelError: the weights are of another architecture, or not whole, or the configuration
            contradicts them.
    """
    expected = {entry.variable: (entry, entry.shape) for entry in entries(config)}
    _check_depth(found, r"bert/encoder/layer_(\d+)/", config, names)
    return _match(found, expected, _LEFT_OUT_VARIABLES, names, config)


def match_parameters(found: Mapping[str, Shape], config: LertConfig, names: Names) -> Match:
    """Account for every tensor of a model folder; arguments and errors as for `match_variables`."""
    expected = {entry.parameter: (entry, entry.parameter_shape) for entry in entries(config)}
    _check_depth(found, r"bert\.encoder\.layer\.(\d+)\.", config, names)
    return _match(found, expected, _LEFT_OUT_PARAMETERS, names, config)


def _match(
    found: Mapping[str, Shape],
    expected: Mapping[str, tuple[Entry, Shape]],
    reasons: Mapping[str, str],
    names: Names,
    config: LertConfig,
) -> Match:
    others = [name for name in found if name not in expected]
    left_out = {name: why for name in others if (why := _reason(name, reasons)) is not None}
    _refuse_unknown([name for name in others if name not in left_out], names)
    lacking: dict[str, list[str]] = {}
    for name, (entry, _) in expected.items():
        if name not in found:
            lacking.setdefault(entry.part, []).append(name)
    there = {entry.part for name, (entry, _) in expected.items() if name in found}
    for part, absent in lacking.items():
        if part in there or part == ENCODER:
            raise ModelError(
                f"{names.weights}: no {absent[0]}, which {names.configuration} asks for"
                f"{_and_more(absent)}; the weights are not whole: copy or download them again"
            )
    if MLM in lacking and there - {ENCODER, POOLER}:
        raise ModelError(
            f"{names.weights}: linguistic heads ({', '.join(sorted(there - {ENCODER, POOLER}))}) "
            "without the MLM head, on whose transform they stand; convert the whole checkpoint"
        )
    mapped = []
    for name, (entry, shape) in expected.items():
        if name in found:
            _check_shape(name, found[name], shape, entry, names)
            mapped.append(entry)
    absent_tasks = (task for task in TASKS if task not in config.tasks)
    return Match(tuple(mapped), left_out, (*lacking, *absent_tasks))


def _reason(name: str, reasons: Mapping[str, str]) -> str | None:
    return next((why for form, why in reasons.items() if re.fullmatch(form, name)), None)


def _refuse_unknown(unknown: list[str], names: Names) -> None:
    if not unknown:
        return
    name = min(unknown)
    kinds = [
        kind
        for form, kind in _OTHER_ARCHITECTURES.items()
        if any(re.match(form, each) for each in unknown)
    ]
    raise ModelError(
        f"{names.weights}: {f'it looks like {kinds[0]}' if kinds else 'another architecture'}, "
        f"with {name}{_and_more(unknown)}; LERT, BERT, RoBERTa-wwm, MacBERT and PERT, as they are "
        "pre-trained, can be converted"
    )


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _check_depth(found: Iterable[str], form: str, config: LertConfig, names: Names) -> None:
    layers = {int(place[1]) + 1 for name in found if (place := re.match(form, name))}
    if layers and max(layers) != config.num_hidden_layers:
        raise ModelError(
            f"{names.configuration}: num_hidden_layers = {config.num_hidden_layers}, but "
            f"{names.weights} has {max(layers)} layers; the two are not of one model"
        )


def _check_shape(name: str, found: Shape, wanted: Shape, entry: Entry, names: Names) -> None:
    if found == wanted:
        return
    keys = entry.keys[::-1] if wanted != entry.shape else entry.keys
    differing = [
        f"{key} = {want}"
        for key, want, there in zip(keys, wanted, found, strict=False)
        if want != there
    ]
    for task in (key.removeprefix("tag_sets.") for key in keys if key.startswith("tag_sets.")):
        raise ModelError(
            f"{names.weights}: {name} is {list(found)}, but the tag set of {task} makes it "
            f"{list(wanted)}; name the tags of its classes, in their order, under tag_sets.{task} "
            f"in {names.configuration}"
        )
    raise ModelError(
        f"{names.configuration}: {' and '.join(dict.fromkeys(differing)) or 'its sizes'} "
        f"would make {name} {list(wanted)}, but in {names.weights} it is {list(found)}; the two "
        "are not of one model"
    )


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_H = "hidden_size"
_Named = tuple[str, str, tuple[str, ...], str]


def _named(layers: int, tasks: Iterable[str]) -> Iterator[_Named]:
    """Yield (variable, parameter, keys of its shape, part) of every weight."""
    for table, key in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        yield (
            f"bert/embeddings/{table}_embeddings",
            f"bert.embeddings.{table}_embeddings.weight",
            (key, _H),
            ENCODER,
        )
    yield from _norm("bert/embeddings", "bert.embeddings", ENCODER)
    for number in range(layers):
        there, here = f"bert/encoder/layer_{number}", f"bert.encoder.layer.{number}"
        for name in ("query", "key", "value"):
            place = (f"{there}/attention/self/{name}", f"{here}.attention.self.{name}")
            yield from _dense(*place, (_H, _H), ENCODER)
        for name, keys in (
            ("attention/output", (_H, _H)),
            ("intermediate", (_H, "intermediate_size")),
            ("output", ("intermediate_size", _H)),
        ):
            place = (f"{there}/{name}", f"{here}.{name.replace('/', '.')}")
            yield from _dense(f"{place[0]}/dense", f"{place[1]}.dense", keys, ENCODER)
            if name != "intermediate":
                yield from _norm(*place, ENCODER)
    yield from _dense("bert/pooler/dense", "bert.pooler.dense", (_H, _H), POOLER)
    transform = ("cls/predictions/transform", "cls.predictions.transform")
    yield from _dense(f"{transform[0]}/dense", f"{transform[1]}.dense", (_H, _H), MLM)
    yield from _norm(*transform, MLM)
    yield "cls/predictions/output_bias", "cls.predictions.bias", ("vocab_size",), MLM
    for task in tasks:
        place = (f"cls/predictions/output_{task}_layer", f"cls.predictions.output_{task}")
        yield from _dense(*place, (_H, f"tag_sets.{task}"), task)


def _dense(variable: str, parameter: str, keys: tuple[str, str], part: str) -> Iterator[_Named]:
    yield f"{variable}/kernel", f"{parameter}.weight", keys, part
    yield f"{variable}/bias", f"{parameter}.bias", keys[1:], part


def _norm(variable: str, parameter: str, part: str) -> Iterator[_Named]:
    yield f"{variable}/LayerNorm/gamma", f"{parameter}.LayerNorm.weight", (_H,), part
    yield f"{variable}/LayerNorm/beta", f"{parameter}.LayerNorm.bias", (_H,), part
