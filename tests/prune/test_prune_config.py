from collections.abc import Callable
from typing import Any

import pytest

from lert_ds.errors import ConfigError
from prune.prune_config import PruneRun

HALF = {"target_num_of_heads": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"parameters": 9}, "pruning": HALF}, "target finds the numbers"),
        ({"target": {"parameters": 9}, "pruning": {"n_iters": 2}}, "searched at once"),
        ({"target": {"parameters": 9}, "drop_layers": 1}, "target finds the numbers"),
        ({"target": {"parameters": 9}, "drop_layers": [1]}, "target finds the numbers"),
        ({"target": {"parameters": 9}, "corpus": []}, "target need text"),
        ({"pruning": HALF, "corpus": []}, "scores by importance need text"),
        ({"drop_layers": 1, "corpus": []}, "drop_layers by their effect need text"),
        ({"drop_layers": -1}, "drop_layers"),
        ({"vocabulary": {}, "corpus": []}, "vocabulary need text"),
        ({"drop_layers": [1], "corpus": []}, r"repair needs text.*repair\.enabled=false"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    prune_run: Callable[..., PruneRun], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prune_run(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"pruning": HALF, "scoring": {"method": "magnitude"}, "repair": {"enabled": False}},
        {"drop_layers": [1], "repair": {"enabled": False}},
        {"vocabulary": {"input": "text.txt"}},
    ],
)
def test_no_corpus_is_needed_where_nothing_is_read(
    prune_run: Callable[..., PruneRun], changes: dict[str, Any]
) -> None:
    assert prune_run(corpus=[], **changes).corpus == ()
