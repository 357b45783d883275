from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds.model_surgery import Cut, cut
from prune.importance.rows import Ask
from prune.importance.scorer import Scorer
from prune.prune_config import PruneRun
from prune.pruning_text import PruningText
from prune.run import load

Make = Callable[..., PruneRun]


def scorer_of(run: PruneRun, folder: Path) -> Scorer:
    return Scorer(run, PruningText.open(run, folder, 32))


def test_each_step_has_its_file_and_other_settings_their_own_scores(
    prune_run: Make, small_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "scores.safetensors"
    run = prune_run(scoring={"method": "fisher", "instances": 16, "file": str(file)})
    model = load(run.model)
    smaller = cut(model, Cut(layers=(0, 2)))
    scorer = scorer_of(run, small_model)
    first, second = scorer(model), scorer(smaller)
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "scores.2.safetensors"}
    assert (len(first.heads), len(second.heads)) == (3, 2)
    again = scorer_of(run, small_model)
    assert torch.equal(again(model).neurons[1], first.neurons[1])
    # Of another seed of the sample they are made again.
    other = scorer_of(run.model_copy(update={"seed": 1}), small_model)(model)
    assert not torch.equal(other.neurons[1], first.neurons[1])


@pytest.mark.parametrize(("method", "expanded"), [("fisher", False), ("textpruner", True)])
def test_textpruner_wants_the_whole_shape(
    prune_run: Make, small_model: Path, method: str, expanded: bool
) -> None:
    run = prune_run(scoring={"method": method, "instances": 8, "batch_size": 8})
    assert scorer_of(run, small_model).expanded is expanded


def test_fisher_asks_every_head_and_labels_only_those_with_tags(
    prune_run: Make, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def score(model: Any, batches: Any, config: object, ask: Ask, **_: object) -> None:
        asked.append(tuple(ask(model, next(iter(batches))).labels))

    monkeypatch.setattr("prune.importance.scoring.score", score)
    for method in ("fisher", "gate_gradient"):
        run = prune_run(scoring={"method": method, "instances": 8})
        text = PruningText.open(run, small_model, 32)
        assert text.train is not None
        text.train.manifest.tag_sets["dep"] = ["other", "tags"]
        Scorer(run, text)(load(run.model))
    assert asked == [("mlm", "pos", "dep"), ("mlm", "pos")]
