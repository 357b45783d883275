"""The kernels for a processor, the hash of their masks in NumPy, and models to put them into."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lert_ds.configuration_lert import LertConfig
from lert_ds.kernels import cpu_ops, modules
from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch

VOCABULARY = 300
TAGS = {"pos": ["n", "v", "a", "d"], "ner": ["O", "S-Ns", "B-Ns"], "dep": ["ATT", "HED"]}


@pytest.fixture(scope="session")
def native() -> Any:
    """The kernels that `cpu_ops.cpp` holds."""
    found = cpu_ops.load()
    if found is None:
        pytest.skip("needs a C++ compiler and ninja")
    return found


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process says once it may say once in each test."""
    monkeypatch.setattr(modules, "_told", set())


def _splitmix(values: Any) -> Any:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keep_of(seed: int, rows: int, columns: int, dropout: float) -> Tensor:
    """Return float64 [rows, columns]: 0 where a unit is dropped, else what it is multiplied by."""
    with np.errstate(over="ignore"):
        start = _splitmix(np.array([seed], dtype=np.uint64))
        keys = (_splitmix(start + np.arange(rows, dtype=np.uint64)) >> np.uint64(32)).astype(
            np.uint32
        )
        lots = keys[:, None] + np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B9)
        lots = (lots ^ (lots >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        lots = (lots ^ (lots >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        lots ^= lots >> np.uint32(16)
    threshold = int(dropout * 2**32)
    kept = 2**32 / (2**32 - threshold)
    return torch.from_numpy(np.where(lots >= threshold, kept, 0.0))


@pytest.fixture(scope="session")
def keep() -> Callable[[int, int, int, float], Tensor]:
    """Seed, rows, columns, probability → float64 [rows, columns], as `cpu/numbers.h` hashes it."""
    return keep_of


@pytest.fixture(scope="session")
def threads() -> Callable[[int], Any]:
    """A number → a context in which torch computes with so many threads."""

    @contextmanager
    def use(number: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return use


def make_lert(*, dropout: float = 0.0, seed: int = 0, **changes: Any) -> LertForPreTraining:
    """Return a small LERT, its weights far from the start, where all attention is even."""
    torch.manual_seed(seed)
    config = LertConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "tag_sets": TAGS,
        }
        | changes
    )
    model = LertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def lert() -> Callable[..., LertForPreTraining]:
    """Dropout, seed, other values of its configuration → a small LERT."""
    return make_lert


@pytest.fixture(scope="session")
def lert_batch() -> Callable[..., Batch]:
    """Seed, padded or not, instances, length → masked instances for `lert`."""

    def make(seed: int = 0, *, padded: bool = True, instances: int = 4, length: int = 24) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, generator=generator)

        masked = instances * length // 6
        tags = {}
        for task, names in TAGS.items():
            unknown = torch.rand(masked, generator=generator) > 0.7
            tags[task] = draw(len(names), masked).masked_fill(unknown, IGNORE_INDEX)
        mask = None
        if padded:
            lengths = 1 + draw(length, instances)
            mask = torch.arange(length) < lengths[:, None]
        return Batch(
            input_ids=draw(VOCABULARY, instances, length),
            attention_mask=mask,
            masked_positions=torch.randperm(instances * length, generator=generator)[:masked],
            labels=draw(VOCABULARY, masked),
            tags=tags,
        )

    return make
