"""The shape that meets a target: candidates by scores and cost, each tried on text.

    scores of all units, layers by their effect ─target.py→ a dozen candidates within the limit
    each: cut, repair, loss on instances that it was not repaired by            the least loss wins

A masked word that a candidate has no piece for costs it the logarithm of the whole vocabulary: what
saying nothing costs. Otherwise a vocabulary of one piece would be the best.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from lert_ds import tokenizer_files
from lert_ds.model_surgery import Cut, cut
from prune import layer_choice
from prune.importance.scorer import Scorer
from prune.prune_config import PruneRun
from prune.pruning_text import PruningData
from prune.repair import repair
from prune.search import target
from prune.vocabulary.choice import Counts, VocabularyConfig, choose, must_keep

REPAIR_INSTANCES = 128
"""Enough to tell candidates apart; the one that is taken is refitted by all."""
TRIAL_INSTANCES = 128
VOCABULARY_SHARES = (1.0, 0.75, 0.5)
"""Of the pieces that the vocabulary's configuration leaves."""

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """What a search chose."""

    shape: Cut
    """Layers, heads and neurons that stay."""
    vocabulary: VocabularyConfig | None
    """With the number of pieces that stay; None where all do."""
    facts: dict[str, Any]
    """For summary.json: the target, and every candidate with its loss."""


def find(
    config: PruneRun,
    model: PreTrainedModel,
    source: Path,
    text: PruningData,
    scorer: Scorer,
    vocabulary: VocabularyConfig | None,
    counts: Counts | None,
) -> Found:
    """Return the shape within the target of a run that has the least loss on text.

    Every process must call it; they get the same answer.

    Args:
        config: Its target is read, and how layers, heads and neurons are chosen.
        model: Whole.
        source: Its folder.
        text: To score, choose, repair and try by.
        scorer: Of heads and neurons.
        vocabulary: Says which pieces may stay; None: all do.
        counts: How often each piece occurs; needed with `vocabulary`.

    Raises:
        ConfigError: no shape meets the target.
    """
    assert config.target is not None
    shape = model.config
    cost = target.cost_of(config.target, shape)
    layers = shape.num_hidden_layers
    gone = layer_choice.drop_order(
        model, text.layer_batches(), layers // 2, config.drop_layers_by, text.layer_ask()
    )
    pieces = _pieces(source, vocabulary, counts)
    found = target.candidates(
        shape,
        scorer(model),
        cost,
        config.target.limit,
        layer_orders=[
            tuple(n for n in range(layers) if n not in gone[:drop]) for drop in range(len(gone) + 1)
        ],
        vocabulary_sizes=[shape.vocab_size] if pieces is None else sorted(pieces, reverse=True),
        multiple_of=config.pruning.multiple_of,
        minimum_heads=config.pruning.minimum_heads,
        minimum_neurons=config.pruning.minimum_neurons,
    )
    tried = _try(config, model, source, text, found, pieces)
    best = min(range(len(tried)), key=lambda number: float(tried[number]["loss"]))
    if vocabulary is not None:
        vocabulary = vocabulary.model_copy(update={"size": found[best].vocabulary_size})
    facts = {"limit": config.target.limit, "tried": tried}
    return Found(found[best].cut_without_pieces, vocabulary, facts)


def _try(
    config: PruneRun,
    model: PreTrainedModel,
    source: Path,
    text: PruningData,
    candidates: Sequence[target.Candidate],
    pieces: dict[int, Tensor] | None,
) -> list[dict[str, float]]:
    """Return the shape, the cost and the loss of each candidate, in their order."""
    unknown = tokenizer_files.load(source).unk_token_id
    batches = text.repair_batches(REPAIR_INSTANCES + TRIAL_INSTANCES)
    half = max(1, len(batches) // 2)
    trial, rest = batches[-half:], batches[:-half] or batches
    tried = []
    for candidate in candidates:
        kept = None if pieces is None else pieces[candidate.vocabulary_size]
        shape = dataclasses.replace(candidate.cut_without_pieces, pieces=kept)
        smaller = cut(model, shape)
        if config.repair.enabled:
            repair(model, smaller, shape, rest, config.repair.ridge, unknown_id=unknown)
        numbers = range(smaller.config.num_hidden_layers)
        facts = {
            "layers": len(numbers),
            "heads": sum(smaller.config.heads_of(number) for number in numbers),
            "neurons": sum(smaller.config.intermediate_size_of(number) for number in numbers),
            "pieces": candidate.vocabulary_size,
            "cost": candidate.cost,
            "loss": text.trial_loss(smaller, trial, kept, model.config.vocab_size, unknown),
        }
        logger.info("tried: %s", "  ".join(f"{key} {value:,.4g}" for key, value in facts.items()))
        tried.append(facts)
    return tried


def _pieces(
    source: Path, vocabulary: VocabularyConfig | None, counts: Counts | None
) -> dict[int, Tensor] | None:
    """Return the pieces that may stay, int64, rising, by how many they are."""
    if vocabulary is None:
        return None
    assert counts is not None
    tokenizer = tokenizer_files.load(source)
    most = len(choose(tokenizer, counts, vocabulary))
    least = len(must_keep(tokenizer, vocabulary))
    found = {}
    for share in VOCABULARY_SHARES:
        size = max(least, int(share * most))
        kept = choose(tokenizer, counts, vocabulary.model_copy(update={"size": size}))
        found[len(kept)] = kept
    return found
