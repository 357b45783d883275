from typing import Any

import pytest

from lert_ds.architecture import SIZES, ArchitectureConfig
from lert_ds.config import parse
from lert_ds.errors import ConfigError
from lert_ds.labels import LTP_TAGS
from lert_ds.training_data import DataFacts

FACTS = DataFacts.assumed(length=128)


@pytest.mark.parametrize(
    ("size", "numbers"),
    [("large", (24, 1024, 16, 4096)), ("base", (12, 768, 12, 3072)), ("small", (12, 256, 4, 1024))],
)
def test_a_size_is_that_of_the_released_model(size: str, numbers: tuple[int, ...]) -> None:
    config = parse(ArchitectureConfig, {"size": size}, "test")
    model = config.model_config_for(FACTS, ("pos", "ner", "dep"))
    assert numbers == (
        model.num_hidden_layers,
        model.hidden_size,
        model.num_attention_heads,
        model.intermediate_size,
    )
    assert (model.vocab_size, model.max_position_embeddings) == (21_128, 512)
    assert model.tag_sets == {task: list(tags) for task, tags in LTP_TAGS.items()}


@pytest.mark.parametrize("key", ["layers", "hidden_size", "heads", "intermediate_size"])
def test_one_number_changes_and_the_others_stay(key: str) -> None:
    config = parse(ArchitectureConfig, {"size": "small", key: 32}, "test")
    for other, number in SIZES["small"].items():
        assert config.number(other) == (32 if other == key else number)


def test_the_model_gets_every_key() -> None:
    config = ArchitectureConfig(
        layers=2, hidden_size=12, heads=3, intermediate_size=20, positions=9,
        dropout=0.25, initializer_range=0.5,
    )  # fmt: skip
    facts = DataFacts(
        length=8, vocabulary_size=33, pad_id=7, instances=1, held_out=0,
        tag_sets={"pos": ("n", "v"), "ner": (), "dep": ("HED",)},
    )  # fmt: skip
    model = config.model_config_for(facts, ("pos", "ner"))
    assert (model.num_hidden_layers, model.hidden_size, model.num_attention_heads) == (2, 12, 3)
    assert (model.intermediate_size, model.max_position_embeddings) == (20, 9)
    assert (model.hidden_dropout_prob, model.attention_probs_dropout_prob) == (0.25, 0.25)
    assert (model.initializer_range, model.vocab_size, model.pad_token_id) == (0.5, 33, 7)
    # Of the tasks that are asked for, those that the corpus has tags of.
    assert model.tag_sets == {"pos": ["n", "v"]}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"layers": 0}, "layers = 0: must be 1 or more"),
        ({"positions": -1}, "positions = -1: must be 1 or more"),
        ({"heads": 0}, "heads = 0: must be 1 or more"),
        ({"size": "small", "heads": 3}, "heads = 3 does not divide hidden_size = 256"),
        ({"hidden_size": 100}, "heads = 16 does not divide hidden_size = 100"),
        ({"dropout": 1.0}, "dropout = 1.0: must be from 0 to below 1"),
        ({"dropout": -0.1}, "dropout = -0.1"),
        ({"size": "huge"}, "size = 'huge'"),
        ({"layer": 3}, "unknown key layer .did you mean layers"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(ArchitectureConfig, tree, "test")
