"""Which head a model folder is exported with, and what that head cannot give."""

from pathlib import Path
from typing import Any

import pytest

from lert_ds.config import parse
from lert_ds.errors import ConfigError, ModelError
from prune.export.export_config import ExportConfig
from prune.export.source import HEADS, find_head, load_model


def settings(model: Path, **keys: Any) -> ExportConfig:
    return parse(ExportConfig, {"model": str(model), "output": "edge", **keys}, "test")


def test_the_head_is_what_it_was_trained_for_or_what_is_asked(tiny_model: Path) -> None:
    assert find_head(settings(tiny_model)) == "mlm"
    assert find_head(settings(tiny_model, head="encoder")) == "encoder"


def test_the_encoder_has_no_pooler_and_heads_go_where_not_asked(tiny_model: Path) -> None:
    encoder = load_model(settings(tiny_model, head="encoder"), "encoder")
    assert isinstance(encoder, HEADS["encoder"].lert)
    assert encoder.pooler is None
    assert not encoder.training
    assert load_model(settings(tiny_model), "mlm").config.tasks == ("pos", "dep")
    assert load_model(settings(tiny_model, tags=False), "mlm").config.tasks == ()
    with pytest.raises(ModelError, match="no weights for head = question_answering"):
        load_model(settings(tiny_model), "question_answering")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"accuracy": {"examples": "a"}}, "has no labels; name accuracy.corpus instead"),
        (
            {"head": "question_answering", "accuracy": {"examples": "a"}},
            "has no labels; leave it out",
        ),
        (
            {"head": "token_classification", "accuracy": {"corpus": "a"}},
            "fills no .*name accuracy.examples",
        ),
    ],
)
def test_what_the_head_cannot_give(tiny_model: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_head(settings(tiny_model, **keys))
