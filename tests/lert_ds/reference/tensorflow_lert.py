"""LERT as a TensorFlow 1 graph, in `tf.compat.v1`: to write a checkpoint as the authors' program
does, and to read one as it does, by `init_from_checkpoint`, name by name.

Operations and scopes follow `src/modeling.py` and `src/run_pretraining.py` of ymcui/LERT; what
TensorFlow 2 has no more of (tf.contrib, tf.layers) is spelt out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def write_checkpoint(
    prefix: Path, variables: Mapping[str, Any], *, steps: int | None = None
) -> None:
    """Save variables as `tf.train.Saver` does; with `steps`, Adam's slots and the step besides."""
    with tf.Graph().as_default(), v1.Session() as session:
        values = {name: np.asarray(value, np.float32) for name, value in variables.items()}
        if steps is not None:
            for name, value in list(values.items()):
                values[f"{name}/adam_m"], values[f"{name}/adam_v"] = value + 1, value + 2
        for name, value in values.items():
            v1.get_variable(name, initializer=value, use_resource=False)
        if steps is not None:
            v1.get_variable("global_step", initializer=np.int64(steps), use_resource=False)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(prefix), write_state=False)


def run_checkpoint(prefix: Path, shape: Any, example: Any) -> dict[str, Any]:
    """Return `hidden` [B, L, H], `pooled` [B, H], logits and losses of each head, in float32."""
    with tf.Graph().as_default(), v1.Session() as session:
        outputs = _build(shape, example)
        names = [variable.op.name for variable in v1.trainable_variables()]
        saved = {name for name, _ in tf.train.list_variables(str(prefix))}
        assert not set(names) - saved, set(names) - saved
        v1.train.init_from_checkpoint(str(prefix), {name: name for name in names})
        session.run(v1.global_variables_initializer())
        return session.run(outputs)  # type: ignore[no-any-return]


def _build(shape: Any, example: Any) -> dict[str, Any]:
    ids = tf.constant(example.input_ids)
    batch, length = example.input_ids.shape
    size = shape.hidden // shape.heads
    with v1.variable_scope("bert"):
        with v1.variable_scope("embeddings"):
            words = v1.get_variable("word_embeddings", [shape.vocabulary, shape.hidden])
            types = v1.get_variable("token_type_embeddings", [shape.types, shape.hidden])
            places = v1.get_variable("position_embeddings", [shape.positions, shape.hidden])
            one_hot = tf.one_hot(tf.reshape(example.segment_ids, [-1]), shape.types)
            x = tf.nn.embedding_lookup(words, ids)
            x += tf.reshape(tf.matmul(one_hot, types), [batch, length, shape.hidden])
            x = _layer_norm(x + tf.slice(places, [0, 0], [length, -1]))
        mask = tf.cast(tf.reshape(example.input_mask, [batch, 1, 1, length]), tf.float32)
        x = tf.reshape(x, [batch * length, shape.hidden])
        with v1.variable_scope("encoder"):
            for number in range(shape.layers):
                with v1.variable_scope(f"layer_{number}"):
                    with v1.variable_scope("attention"):
                        with v1.variable_scope("self"):
                            query, key, value = (
                                tf.transpose(
                                    tf.reshape(
                                        _dense(x, shape.hidden, name),
                                        [batch, length, shape.heads, size],
                                    ),
                                    [0, 2, 1, 3],
                                )
                                for name in ("query", "key", "value")
                            )
                            scores = tf.matmul(query, key, transpose_b=True) / np.sqrt(size)
                            shares = tf.nn.softmax(scores + (1.0 - mask) * -10000.0)
                            context = tf.transpose(tf.matmul(shares, value), [0, 2, 1, 3])
                            context = tf.reshape(context, [batch * length, shape.hidden])
                        with v1.variable_scope("output"):
                            x = _layer_norm(_dense(context, shape.hidden) + x)
                    with v1.variable_scope("intermediate"):
                        raised = _gelu(_dense(x, shape.neurons))
                    with v1.variable_scope("output"):
                        x = _layer_norm(_dense(raised, shape.hidden) + x)
        hidden = tf.reshape(x, [batch, length, shape.hidden])
        with v1.variable_scope("pooler"):
            pooled = tf.tanh(_dense(hidden[:, 0], shape.hidden))
    outputs = {"hidden": hidden, "pooled": pooled}
    with v1.variable_scope("cls/predictions"):
        masked = tf.gather(x, example.positions)
        with v1.variable_scope("transform"):
            masked = _layer_norm(_gelu(_dense(masked, shape.hidden)))
        bias = v1.get_variable("output_bias", [shape.vocabulary])
        logits = {"mlm": tf.matmul(masked, words, transpose_b=True) + bias}
        for task, classes in shape.classes.items():
            logits[task] = _dense(masked, classes, f"output_{task}_layer")
    for name, each in logits.items():
        labels = example.labels if name == "mlm" else example.tags[name]
        one_hot = tf.one_hot(labels, each.shape[-1])
        terms = -tf.reduce_sum(tf.nn.log_softmax(each) * one_hot, -1)
        outputs[f"{name}/logits"] = each
        outputs[f"{name}/loss"] = tf.reduce_sum(terms) / (len(labels) + 1e-5)
    return outputs


def _dense(x: Any, units: int, name: str = "dense") -> Any:
    """`tf.layers.dense`."""
    with v1.variable_scope(name):
        kernel = v1.get_variable("kernel", [x.shape[-1], units])
        return tf.matmul(x, kernel) + v1.get_variable("bias", [units])


def _layer_norm(x: Any) -> Any:
    """`tf.contrib.layers.layer_norm`."""
    with v1.variable_scope("LayerNorm"):
        beta, gamma = (v1.get_variable(name, [x.shape[-1]]) for name in ("beta", "gamma"))
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)


def _gelu(x: Any) -> Any:
    return x * 0.5 * (1.0 + tf.math.erf(x / tf.sqrt(2.0)))
