"""`lert-ds prune`: a model folder to a smaller one, of any shape.

    model ─layers→ ─scores, step by step→ heads, neurons ─vocabulary→ pieces ─cut, repair→ model

Read with `prune_config.py` (what can be asked), `iterations.py` (the steps), `repair.py` and
`lert_ds/model_surgery.py` (the cut). What it makes is trained again by `lert-ds recover`.
"""

import argparse
import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lert_ds import cli, distributed, model_dir, run_lock, tokenizer_files, training
from lert_ds.config import dump
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ModelError
from lert_ds.files import refuse_finished, write_json
from lert_ds.model_surgery import Cut, cut
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.train.engine import device, join_processes, leave_processes
from prune import iterations, layer_choice, mask_file, prune_plan
from prune.importance.scorer import Scorer
from prune.prune_config import PruneRun
from prune.pruning_task import PruningTask
from prune.pruning_text import PruningData, PruningText
from prune.repair import repair
from prune.search import shape_search
from prune.vocabulary.choice import (
    Counts,
    PrunedVocabulary,
    VocabularyConfig,
    count,
    prune_vocabulary,
)

MASKS = "masks.safetensors"
PRUNED_FROM = "pruned_from"
"""Key of a pruned model's run.json: the model that was pruned, a teacher for its recovery."""
STEP_INSTANCES = 128
"""Repair between two iterations: enough to score by; the last one takes all."""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    cli.add_config_arguments(parser, PruneRun, Path(__file__).parent / "configs")


def run(arguments: argparse.Namespace) -> None:
    """Prune as configured, or say what that would leave."""
    config = cli.read_config(PruneRun, arguments)
    if arguments.dry_run:
        cli.print_config(config)
        print("\n".join(prune_plan.explain(config)))  # noqa: T201
        return
    with _processes():
        prune(config)


def prune(config: PruneRun) -> dict[str, Any]:
    """Prune a model, write its run folder, and return the content of summary.json.

    Every process must call it.

    Raises:
        UserError: something does not fit; nothing has been written then.
    """
    refuse_finished(config.output, run_lock.FINISHED, config.overwrite)
    started = time.perf_counter()
    source = model_dir.resolve(config.model)
    shape = model_dir.read_config(source)
    given = prune_plan.check(config, shape, source)
    text = open_data(config, source, shape)
    model = load(config.model, text.model_class).to(device())
    scorer = Scorer(config, text)
    search: dict[str, Any] = {}
    vocabulary_config = _vocabulary_config(config, text)
    # Counted first: what is wrong with the text is told before the long scoring.
    counts = None if vocabulary_config is None else _count(source, vocabulary_config, text)
    if config.target is not None:
        chosen, vocabulary_config, search = shape_search.find(
            config, model, source, text, scorer, vocabulary_config, counts
        )
    else:
        chosen = _choose(config, model, text, scorer, given)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, vocabulary = source, None
        if vocabulary_config is not None:
            tokenizer = Path(folder) / "tokenizer"
            vocabulary = prune_vocabulary(source, vocabulary_config, tokenizer, counts)
            chosen = dataclasses.replace(chosen, pieces=vocabulary.pieces)
        smaller, held_out = _make(config, model, chosen, text, source, tokenizer)
        summary = {
            PRUNED_FROM: config.model,
            **_facts(model, smaller, chosen),
            "vocabulary": _vocabulary_facts(vocabulary),
            "held_out": held_out,
            "scored": [{"method": s.method, "examples": s.examples} for s in scorer.scores],
            "search": search,
            "seconds": round(time.perf_counter() - started, 1),
            "versions": training.versions(),
        }
        if distributed.is_main():
            _write(config, smaller, chosen, tokenizer, summary)
    distributed.barrier()
    return summary


def open_data(config: PruneRun, source: Path, shape: LertConfig) -> PruningData:
    """Return what a run reads: corpora, or the examples of a task.

    Raises:
        UserError: something of it is missing or wrong, or does not fit the model.
    """
    if config.task is not None:
        return PruningTask.open(config, source, shape)
    return PruningText.open(config, source, shape.max_position_embeddings)


def load(source: str, cls: type[PreTrainedModel] = LertForPreTraining) -> PreTrainedModel:
    """Return the model to prune, in fp32.

    Args:
        source: Model folder or name on the hub.
        cls: With the heads that are to be kept.

    Raises:
        ModelError: it cannot be read, or parts of it have no weights.
    """
    model: PreTrainedModel
    model, report = model_dir.load(source, cls)
    if report.random:
        what = (
            "with its pre-training heads, or say task= for a model that is fine-tuned"
            if cls is LertForPreTraining
            else "by lert-ds finetune, or leave task out for a pre-trained model"
        )
        raise ModelError(
            f"{source}: it has no weights for {report.random[0]}; name a model that was saved "
            f"{what}"
        )
    model.eval()
    return model


@contextmanager
def _processes() -> Iterator[None]:
    """Join the processes of a launcher; one alone needs none of it."""
    alone = distributed.world_size() == 1
    if not alone:
        join_processes()
    try:
        yield
    finally:
        if not alone:
            leave_processes()


def _count(source: Path, vocabulary: VocabularyConfig, text: PruningData) -> Counts:
    """Return how often each piece occurs in the texts that are named, or else in the task's."""
    counts = text.piece_counts()
    if counts is None or vocabulary.input or vocabulary.corpus:
        return count(source, vocabulary)
    return counts


def _choose(
    config: PruneRun, model: PreTrainedModel, text: PruningData, scorer: Scorer, given: Cut
) -> Cut:
    """Return what stays of the layers, the heads and the neurons."""
    layers = given.layers
    if isinstance(config.drop_layers, int) and config.drop_layers:
        layers = layer_choice.choose_layers(
            model, text.layer_batches(), config.drop_layers, config.drop_layers_by, text.layer_ask()
        )
        gone = [n + 1 for n in range(model.config.num_hidden_layers) if n not in layers]
        logger.info("layers dropped, by %s: %s", config.drop_layers_by, gone)
    if config.pruning.pruning_method == "masks":
        return dataclasses.replace(given, layers=layers)

    def refit(smaller: PreTrainedModel, shape: Cut) -> None:
        batches = text.repair_batches(min(STEP_INSTANCES, config.repair.instances))
        repair(model, smaller, shape, batches, config.repair.ridge)

    return iterations.prune_iteratively(
        model,
        config.pruning,
        scorer,
        layers=layers,
        expanded=scorer.expanded,
        refit=refit if config.repair.enabled else None,
    )


def _make(
    config: PruneRun, model: PreTrainedModel, chosen: Cut, text: PruningData,
    source: Path, tokenizer: Path,
) -> tuple[PreTrainedModel, dict[str, dict[str, float]]]:  # fmt: skip
    """Return the model cut and repaired, and what it reached on held-out text at each stage."""
    held_out: dict[str, dict[str, float]] = {}

    def measure(stage: str, measured: PreTrainedModel, vocabulary: Path) -> None:
        if found := text.held_out(measured, vocabulary):
            held_out[stage] = found
            shown = "  ".join(f"{key} {value:.4g}" for key, value in found.items())
            logger.info("held out, %-8s  %s", stage, shown)

    measure("original", model, source)
    smaller = cut(model, chosen)
    measure("cut", smaller, tokenizer)
    if config.repair.enabled and any((chosen.heads, chosen.neurons, chosen.layers)):
        unknown = tokenizer_files.load(source).unk_token_id
        batches = text.repair_batches(config.repair.instances)
        repair(model, smaller, chosen, batches, config.repair.ridge, unknown_id=unknown)
        measure("repaired", smaller, tokenizer)
    return smaller, held_out


def _vocabulary_config(config: PruneRun, text: PruningData) -> VocabularyConfig | None:
    """Return the vocabulary's configuration, with the run's corpora where it names no text."""
    given = config.vocabulary
    if given is None:
        return None
    changes: dict[str, Any] = {}
    if not given.input and not given.corpus:
        changes["corpus"] = config.corpus
    if not given.input_valid and not given.corpus_valid:
        changes["corpus_valid"] = text.valid_corpora
    return given.model_copy(update=changes)


def _facts(model: PreTrainedModel, smaller: PreTrainedModel, chosen: Cut) -> dict[str, Any]:
    before, after = model.config, smaller.config
    numbers = range(before.num_hidden_layers)
    left = numbers if chosen.layers is None else chosen.layers
    return {
        "parameters": {"before": model.num_parameters(), "after": smaller.num_parameters()},
        "layers": [number + 1 for number in left],
        "heads": [after.heads_of(number) for number in range(after.num_hidden_layers)],
        "neurons": [after.intermediate_size_of(n) for n in range(after.num_hidden_layers)],
        "pieces": {"before": before.vocab_size, "after": after.vocab_size},
    }


def _vocabulary_facts(vocabulary: PrunedVocabulary | None) -> dict[str, Any] | None:
    if vocabulary is None or vocabulary.coverage is None:
        return None
    return vocabulary.coverage.as_json()


def _write(
    config: PruneRun, smaller: PreTrainedModel, chosen: Cut, tokenizer: Path,
    summary: dict[str, Any],
) -> None:  # fmt: skip
    folder = config.output / "model"
    shutil.rmtree(folder, ignore_errors=True)  # an old result; the model, written last, is the new
    config.output.mkdir(parents=True, exist_ok=True)
    write_json(config.output / "config.json", dump(config))
    mask_file.write_masks(config.output / MASKS, chosen)
    write_json(config.output / "summary.json", {**summary, "model": str(folder)})
    model_dir.save(smaller.cpu(), tokenizer, folder, {**summary, "config": dump(config)})
    for line in _lines(summary):
        logger.info(line)
    logger.info("model: %s", folder)


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """Yield what the user is told of a pruning."""
    for name in ("parameters", "pieces"):
        before, after = summary[name]["before"], summary[name]["after"]
        yield f"{name:<17} {before:,} → {after:,} ({after / before:.1%})"
    yield f"{'layers':<17} {', '.join(map(str, summary['layers']))}"
    yield f"{'heads':<17} {', '.join(map(str, summary['heads']))}"
    yield f"{'neurons':<17} {', '.join(map(str, summary['neurons']))}"
