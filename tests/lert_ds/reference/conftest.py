"""The NumPy reference as modules, and what carries weights and batches between it and ours."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds.configuration_lert import LertConfig
from lert_ds.convert.mapping import entries
from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch

CLASSES = {"pos": 28, "ner": 13, "dep": 14}


def load(name: str) -> ModuleType:
    """Import a module of this folder, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lert() -> Any:
    """The model of the reference."""
    return load("numpy_lert")


@pytest.fixture(scope="session")
def adamw() -> Any:
    """Its optimizer and schedule."""
    return load("numpy_adamw")


@pytest.fixture(scope="session")
def tensorflow_lert() -> Any:
    """The same model as a TensorFlow graph; where TensorFlow is installed."""
    return load("tensorflow_lert")


@pytest.fixture(scope="session")
def shape(lert: Any) -> Any:
    """A tiny LERT with LERT's own classes: 2 layers of 3 heads of 4, 50 pieces."""
    return lert.Shape(
        vocabulary=50, hidden=12, layers=2, heads=3, neurons=20, positions=16, types=2,
        classes=CLASSES,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_example(lert: Any, shape: Any) -> Any:
    """Seed → a batch of three instances of 10, 7 and 4 tokens, 6 masked, some tags unknown.

    Every fifth has no dependency relation at all, and segments are of two kinds where asked.
    """

    def make(seed: int, *, all_tags: bool = False, segments: bool = False) -> Any:
        generator = np.random.default_rng(seed)
        lengths = np.array([10, 7, 4])
        mask = (np.arange(10) < lengths[:, None]).astype(np.int64)
        real = np.flatnonzero(mask.ravel())
        tags = {}
        for task, classes in CLASSES.items():
            tags[task] = generator.integers(0, classes, 6)
            if not all_tags:
                unknown = generator.random(6) < 0.3
                tags[task][unknown | (task == "dep" and seed % 5 == 4)] = -1
        return lert.Example(
            input_ids=generator.integers(1, shape.vocabulary, (3, 10)) * mask,
            input_mask=mask,
            segment_ids=generator.integers(0, 2, (3, 10)) if segments else np.zeros_like(mask),
            positions=np.sort(generator.choice(real, 6, replace=False)),
            labels=generator.integers(0, shape.vocabulary, 6),
            tags=tags,
        )

    return make


def config_of(shape: Any) -> LertConfig:
    return LertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.neurons,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.types,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        tag_sets={t: [f"{t}{k}" for k in range(n)] for t, n in shape.classes.items()},
    )


@pytest.fixture(scope="session")
def pairs(shape: Any) -> Any:
    """TensorFlow's name of each parameter to ours, and whether ours is transposed."""
    return {
        entry.variable: (entry.parameter, entry.transposed)
        for entry in entries(config_of(shape))
        if entry.part != "pooler"
    }


@pytest.fixture(scope="session")
def model_of(shape: Any, pairs: Any) -> Any:
    """Parameters of the reference, and a type → our model with the same."""

    def make(parameters: Any, dtype: torch.dtype = torch.float64) -> LertForPreTraining:
        model = LertForPreTraining(config_of(shape)).to(dtype)
        assert pairs.keys() == parameters.keys()
        weights = {}
        for variable, (parameter, transposed) in pairs.items():
            values = parameters[variable]
            weights[parameter] = torch.tensor(values.T if transposed else values, dtype=dtype)
        lacking, unknown = model.load_state_dict(weights, strict=False)
        assert not unknown
        assert set(lacking) <= set(model.all_tied_weights_keys)
        model.tie_weights()
        return model.train()

    return make


@pytest.fixture(scope="session")
def batch_of() -> Any:
    """A batch of the reference → the same as ours."""

    def make(example: Any) -> Batch:
        tags = {t: np.where(tags < 0, IGNORE_INDEX, tags) for t, tags in example.tags.items()}
        return Batch(
            input_ids=torch.from_numpy(example.input_ids),
            attention_mask=torch.from_numpy(example.input_mask.astype(bool)),
            masked_positions=torch.from_numpy(example.positions),
            labels=torch.from_numpy(example.labels),
            tags={task: torch.from_numpy(values) for task, values in tags.items()},
        )

    return make


@pytest.fixture(scope="session")
def largest_difference(pairs: Any) -> Any:
    """Parameters (or gradients) of both by their own names → the largest difference, and where."""

    def find(reference: Any, ours: Any) -> tuple[float, str]:
        found = []
        for variable, (parameter, transposed) in pairs.items():
            values = ours[parameter].detach().numpy()
            difference = np.abs(reference[variable] - (values.T if transposed else values)).max()
            found.append((float(difference), variable))
        return max(found)

    return find
