from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lert_ds.model_surgery import Cut, cut, cut_config
from prune.importance.scorer import Scorer
from prune.prune_config import PruneRun
from prune.pruning_text import PruningText
from prune.run import load
from prune.search import shape_search
from prune.vocabulary.choice import VocabularyConfig, count

Make = Callable[..., PruneRun]


def test_the_shape_with_the_least_loss_is_taken_and_meets_the_limit(
    prune_run: Make, small_model: Path, tiny_corpus: Path
) -> None:
    model = load(str(small_model))
    limit = int(0.75 * model.num_parameters())
    run = prune_run(target={"parameters": limit})
    text = PruningText.open(run, small_model, 32)
    vocabulary = VocabularyConfig(corpus=(tiny_corpus,))
    counts = count(small_model, vocabulary)
    found = shape_search.find(run, model, small_model, text, Scorer(run, text), vocabulary, counts)
    tried = found.facts["tried"]
    assert len({one["layers"] for one in tried}) > 1
    assert len({one["pieces"] for one in tried}) > 1
    best = min(tried, key=lambda one: one["loss"])
    left = cut_config(model.config, found.shape)
    assert left.num_hidden_layers == best["layers"]
    assert found.vocabulary is not None
    assert found.vocabulary.size == best["pieces"]
    smaller = cut(model, found.shape).num_parameters()
    assert smaller - (45 - best["pieces"]) * (16 + 1) <= limit


def test_the_vocabulary_is_left_alone_where_none_is_configured(
    prune_run: Make, small_model: Path
) -> None:
    model = load(str(small_model))
    run = prune_run(target={"parameters": int(0.8 * model.num_parameters())})
    text = PruningText.open(run, small_model, 32)
    found = shape_search.find(run, model, small_model, text, Scorer(run, text), None, None)
    assert found.vocabulary is None
    assert {one["pieces"] for one in found.facts["tried"]} == {45}


def test_a_word_without_a_piece_costs_the_candidate(prune_run: Make, small_model: Path) -> None:
    model = load(str(small_model))
    text = PruningText.open(prune_run(), small_model, 32)
    batches = text.repair_batches(32)
    whole = text.trial_loss(model, batches, None, 45, 1)
    pieces = torch.tensor([0, 1, 2, 3, 4])
    none_left = text.trial_loss(cut(model, Cut(pieces=pieces)), batches, pieces, 45, 1)
    assert none_left == pytest.approx(3.80666, abs=1e-4)  # ln 45: it can say nothing
    assert whole != pytest.approx(none_left, abs=1e-2)
