"""LERT in NumPy, from its description: hidden states, four losses, and their gradients by hand.

    parameters = random_parameters(shape, generator)      TensorFlow's names; kernels are [in, out]
    result = forward(parameters, shape, example)          hidden states, logits
    losses = losses_of(result, example, PUBLISHED)        MLM, POS, NER, DEP
    loss, gradients = differentiate(parameters, shape, example, weights, PUBLISHED)

Written from `src/modeling.py` and `src/run_pretraining.py` of ymcui/LERT and from Cui et al. 2022
(arXiv 2211.05344) as references of fact; it shares no code with what it is there to check.
Dropout is 0. Everything has the type of the parameters: float64, or float32.

Shapes in comments: B instances, L tokens, H hidden, A heads, D = H / A, M masked, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Parameters = dict[str, Array]

EPSILON = 1e-12
"""Of every LayerNorm: tf.contrib.layers.layer_norm."""
NOT_ATTENDED = -10000.0
"""Added to the score of a padded key."""
TASKS = ("pos", "ner", "dep")

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Shape(NamedTuple):
    """Sizes of a model."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    neurons: int
    positions: int
    types: int
    classes: dict[str, int]


class Example(NamedTuple):
    """One batch, as the authors' program reads it."""

    input_ids: NDArray[np.int64]
    """[B, L]."""
    input_mask: NDArray[np.int64]
    """[B, L], 1 at real tokens."""
    segment_ids: NDArray[np.int64]
    """[B, L]."""
    positions: NDArray[np.int64]
    """[M], places in the flattened [B * L]."""
    labels: NDArray[np.int64]
    """[M]."""
    tags: dict[str, NDArray[np.int64]]
    """Task to [M]; -1 where the tag is unknown."""


class Convention(NamedTuple):
    """By what the sum of a loss is divided."""

    known_alone: bool
    """A task's by the positions whose tag is known, at least 1; else by all masked positions."""
    extra: float
    """Added to the number."""


PUBLISHED = Convention(known_alone=False, extra=1e-5)
"""`get_loss` of run_pretraining.py: an unknown tag, a row of zeros, adds 0 and counts all the same.

The authors' data has a tag at every masked position, so the first choice makes no difference."""
OURS = Convention(known_alone=True, extra=0.0)
"""Means over what is known (docstring of lert_ds/pretraining_objective.py)."""


class Result(NamedTuple):
    """What a forward pass computes, and what a backward pass needs of it."""

    hidden: list[Array]
    """[B, L, H] of the embeddings and of each layer."""
    logits: dict[str, Array]
    """`mlm`, `pos`, `ner`, `dep` to [M, classes]."""
    kept: dict[str, Any]


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every variable that a loss depends on: all but the pooler's."""
    h, shapes = shape.hidden, {}

    def dense(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = (inputs, outputs), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}/LayerNorm/gamma"] = shapes[f"{name}/LayerNorm/beta"] = (h,)

    for table, rows in (
        ("word", shape.vocabulary), ("token_type", shape.types), ("position", shape.positions)
    ):  # fmt: skip
        shapes[f"bert/embeddings/{table}_embeddings"] = (rows, h)
    norm("bert/embeddings")
    for number in range(shape.layers):
        layer = f"bert/encoder/layer_{number}"
        for name in ("query", "key", "value"):
            dense(f"{layer}/attention/self/{name}", h, h)
        dense(f"{layer}/attention/output/dense", h, h)
        norm(f"{layer}/attention/output")
        dense(f"{layer}/intermediate/dense", h, shape.neurons)
        dense(f"{layer}/output/dense", shape.neurons, h)
        norm(f"{layer}/output")
    dense("cls/predictions/transform/dense", h, h)
    norm("cls/predictions/transform")
    shapes["cls/predictions/output_bias"] = (shape.vocabulary,)
    for task, classes in shape.classes.items():
        dense(f"cls/predictions/output_{task}_layer", h, classes)
    return shapes


def random_parameters(shape: Shape, generator: np.random.Generator) -> Parameters:
    """Return float64 parameters far from where a model starts, so that every term matters."""
    return {
        name: 0.3 * generator.standard_normal(size) + (1.0 if name.endswith("gamma") else 0.0)
        for name, size in parameter_shapes(shape).items()
    }


def gelu(x: Array) -> Array:
    """Return x times the normal distribution's share below x."""
    return (x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))).astype(x.dtype)


def gelu_slope(x: Array) -> Array:
    """Return the derivative of `gelu`: the share below x, and x times the density there."""
    share = 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
    return (share + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)).astype(x.dtype)


def softmax(scores: Array) -> Array:
    """Return the softmax over the last dimension."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def log_softmax(scores: Array) -> Array:
    """Return its logarithm."""
    moved = scores - scores.max(-1, keepdims=True)
    return moved - np.log(np.exp(moved).sum(-1, keepdims=True))


def forward(parameters: Parameters, shape: Shape, example: Example) -> Result:
    """Return hidden states and logits of one batch."""
    kept: dict[str, Any] = {}

    def dense(name: str, x: Array) -> Array:
        kept[name] = x
        return x @ parameters[f"{name}/kernel"] + parameters[f"{name}/bias"]

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scale = 1.0 / np.sqrt((centred * centred).mean(-1, keepdims=True) + EPSILON)
        kept[f"{name}/LayerNorm"] = centred * scale, scale
        gamma, beta = (parameters[f"{name}/LayerNorm/{part}"] for part in ("gamma", "beta"))
        return gamma * centred * scale + beta

    length = example.input_ids.shape[1]
    tables = {
        name: parameters[f"bert/embeddings/{name}_embeddings"]
        for name in ("word", "token_type", "position")
    }
    embedded = tables["word"][example.input_ids] + tables["token_type"][example.segment_ids]
    hidden = [norm("bert/embeddings", embedded + tables["position"][:length])]
    adder = (1.0 - example.input_mask[:, None, None, :].astype(embedded.dtype)) * NOT_ATTENDED
    for number in range(shape.layers):
        layer, x = f"bert/encoder/layer_{number}", hidden[-1]
        query, key, value = (
            _to_heads(dense(f"{layer}/attention/self/{name}", x), shape.heads)
            for name in ("query", "key", "value")
        )
        scale = 1.0 / math.sqrt(shape.hidden // shape.heads)
        shares = softmax(query @ key.swapaxes(-1, -2) * scale + adder)  # [B, A, L, L]
        kept[f"{layer}/attention"] = query, key, value, shares, scale
        attended = dense(f"{layer}/attention/output/dense", _from_heads(shares @ value))
        attended = norm(f"{layer}/attention/output", attended + x)
        raised = dense(f"{layer}/intermediate/dense", attended)
        kept[f"{layer}/gelu"] = raised
        lowered = dense(f"{layer}/output/dense", gelu(raised))
        hidden.append(norm(f"{layer}/output", lowered + attended))
    masked = hidden[-1].reshape(-1, shape.hidden)[example.positions]  # [M, H]
    raised = dense("cls/predictions/transform/dense", masked)
    kept["cls/gelu"] = raised
    transformed = norm("cls/predictions/transform", gelu(raised))
    kept["transformed"] = transformed
    logits = {"mlm": transformed @ tables["word"].T + parameters["cls/predictions/output_bias"]}
    for task in shape.classes:
        logits[task] = dense(f"cls/predictions/output_{task}_layer", transformed)
    return Result(hidden, logits, kept)


def losses_of(result: Result, example: Example, convention: Convention) -> dict[str, float]:
    """Return the loss of each head: `mlm`, `pos`, `ner`, `dep`."""
    losses = {}
    for name, logits in result.logits.items():
        labels, shares = _targets(name, example, convention)
        rows = np.arange(len(labels))
        losses[name] = float(-(log_softmax(logits)[rows, labels] * shares).sum())
    return losses


def lip_weights(step: int, ends: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each linguistic task at a step: it grows to 1 until its end step."""
    return {task: min(max(step / end, 0.0), 1.0) for task, end in ends.items()}


def differentiate(
    parameters: Parameters,
    shape: Shape,
    example: Example,
    weights: Mapping[str, float],
    convention: Convention,
) -> tuple[float, Parameters]:
    """Return MLM plus the weighed tasks, and its derivative by every parameter."""
    result = forward(parameters, shape, example)
    kept, gradients = result.kept, {name: np.zeros_like(p) for name, p in parameters.items()}

    def dense(name: str, rise: Array) -> Array:
        inputs, rows = (
            kept[name].reshape(-1, kept[name].shape[-1]),
            rise.reshape(-1, rise.shape[-1]),
        )
        gradients[f"{name}/kernel"] += inputs.T @ rows
        gradients[f"{name}/bias"] += rows.sum(0)
        return rise @ parameters[f"{name}/kernel"].T

    def norm(name: str, rise: Array) -> Array:
        unit, scale = kept[f"{name}/LayerNorm"]
        across = tuple(range(rise.ndim - 1))
        gradients[f"{name}/LayerNorm/gamma"] += (rise * unit).sum(across)
        gradients[f"{name}/LayerNorm/beta"] += rise.sum(across)
        inner = rise * parameters[f"{name}/LayerNorm/gamma"]
        along = (inner * unit).mean(-1, keepdims=True)
        return scale * (inner - inner.mean(-1, keepdims=True) - unit * along)

    words = "bert/embeddings/word_embeddings"
    losses = losses_of(result, example, convention)
    total = losses["mlm"] + sum(weights[task] * losses[task] for task in shape.classes)
    rise = np.zeros_like(kept["transformed"])
    for name, logits in result.logits.items():
        labels, shares = _targets(name, example, convention)
        slope = softmax(logits)
        slope[np.arange(len(labels)), labels] -= 1.0
        slope *= shares[:, None] * (1.0 if name == "mlm" else weights[name])
        slope = slope.astype(rise.dtype)
        if name == "mlm":
            gradients["cls/predictions/output_bias"] += slope.sum(0)
            gradients[words] += slope.T @ kept["transformed"]
            rise += slope @ parameters[words]
        else:
            rise += dense(f"cls/predictions/output_{name}_layer", slope)
    rise = norm("cls/predictions/transform", rise) * gelu_slope(kept["cls/gelu"])
    rise = dense("cls/predictions/transform/dense", rise)
    flat = np.zeros((example.input_ids.size, shape.hidden), rise.dtype)
    np.add.at(flat, example.positions, rise)
    back = flat.reshape(*example.input_ids.shape, shape.hidden)
    for number in reversed(range(shape.layers)):
        layer = f"bert/encoder/layer_{number}"
        back = norm(f"{layer}/output", back)
        raised = dense(f"{layer}/output/dense", back) * gelu_slope(kept[f"{layer}/gelu"])
        back = norm(
            f"{layer}/attention/output", back + dense(f"{layer}/intermediate/dense", raised)
        )
        context = _to_heads(dense(f"{layer}/attention/output/dense", back), shape.heads)
        query, key, value, shares, scale = kept[f"{layer}/attention"]
        by_share = context @ value.swapaxes(-1, -2)
        by_score = shares * (by_share - (by_share * shares).sum(-1, keepdims=True)) * scale
        for name, slope in (
            ("query", by_score @ key),
            ("key", by_score.swapaxes(-1, -2) @ query),
            ("value", shares.swapaxes(-1, -2) @ context),
        ):
            back = back + dense(f"{layer}/attention/self/{name}", _from_heads(slope))
    back = norm("bert/embeddings", back)
    np.add.at(gradients[words], example.input_ids, back)
    np.add.at(gradients["bert/embeddings/token_type_embeddings"], example.segment_ids, back)
    gradients["bert/embeddings/position_embeddings"][: back.shape[1]] += back.sum(0)
    return total, gradients


def _targets(
    name: str, example: Example, convention: Convention
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the labels of a head, and the share of each position in its loss, [M] both."""
    labels = example.labels if name == "mlm" else example.tags[name]
    known = labels >= 0
    count = float(known.sum() if convention.known_alone else len(labels))
    count = (max(count, 1.0) if convention.known_alone else count) + convention.extra
    return np.where(known, labels, 0), known / count


def _to_heads(x: Array, heads: int) -> Array:
    """Return [B, A, L, D] of [B, L, H]."""
    batch, length, hidden = x.shape
    return x.reshape(batch, length, heads, hidden // heads).transpose(0, 2, 1, 3)


def _from_heads(x: Array) -> Array:
    """Return [B, L, H] of [B, A, L, D]."""
    batch, heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
