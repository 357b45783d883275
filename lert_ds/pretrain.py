"""`lert-ds pretrain`: a corpus folder to a pre-trained LERT.

Read with `training.py` (what every training shares), `pretraining_objective.py` (the loss) and
`train/trainer.py` (the loop).
"""

import argparse
import logging
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from lert_ds import cli, distributed, model_dir, run_folder, training, training_run
from lert_ds.architecture import ArchitectureConfig
from lert_ds.configuration_lert import LertConfig
from lert_ds.corpora import Corpora
from lert_ds.errors import ConfigError
from lert_ds.kernels.apply import Kernels
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.neighbour_start import start_with_neighbours
from lert_ds.pretraining_objective import LipConfig, PretrainingObjective
from lert_ds.training_data import DataFacts

logger = logging.getLogger(__name__)


class NewModelConfig(ArchitectureConfig):
    """The shape of a model that starts from random weights, and how they are drawn."""

    start: Literal["plain", "neighbours"] = "plain"
    """plain: random, as BERT; neighbours: the first heads look at the words beside, which a small
    model on little text takes long to find out."""


class PretrainRun(training_run.CorpusRun):
    """Configuration of `lert-ds pretrain`."""

    architecture: NewModelConfig = NewModelConfig()
    """The shape, where the weights start from random."""
    init_from: str | None = None
    """Start from these weights instead: a folder or hub name of a LERT or any Chinese BERT."""
    lip: LipConfig = LipConfig()
    """Linguistic tasks, and how their weights grow."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    cli.add_training_arguments(parser, PretrainRun, Path(__file__).parent / "configs")


def run(arguments: argparse.Namespace) -> None:
    """Pre-train as configured, or say what that would take."""
    start(cli.read_config(PretrainRun, arguments), arguments)


def start(config: PretrainRun, arguments: argparse.Namespace) -> None:
    """Pre-train, or with --dry-run say what that would take."""
    if arguments.dry_run:
        planned = work_out(config, arguments.processes or distributed.world_size())
        cli.print_config(planned.run)
        print(planned.explained)  # noqa: T201
        return
    pretrain(config, open_corpora(config))


class Planned(NamedTuple):
    """What a pre-training would be, before anything is trained."""

    run: PretrainRun
    """With its steps, where it said epochs."""
    facts: DataFacts
    model: LertConfig
    numbers: training_run.Arithmetic
    explained: str
    """The arithmetic as text."""


def has_corpus(config: PretrainRun) -> bool:
    """Return whether any of a run's corpus folders is there."""
    return any(folder.exists() for folder in config.corpus)


def open_corpora(config: PretrainRun) -> Corpora:
    """Return the corpora of a run, in the vocabulary of the model that it starts from.

    Raises:
        UserError: one is missing or damaged, or of another tokenizer, length or tag set.
    """
    corpora = training_run.open_corpora(config)
    return corpora if config.init_from is None else corpora.in_vocabulary_of(config.init_from)


def work_out(config: PretrainRun, processes: int) -> Planned:
    """Return what a pre-training on `processes` would be; its corpus need not be there yet.

    Raises:
        UserError: something does not fit.
    """
    if has_corpus(config):
        facts = open_corpora(config).facts
    else:
        facts = DataFacts.assumed(config.architecture.positions)
    config = training_run.with_steps(config, facts.instances)
    model_config, numbers = plan(config, facts, processes)
    explained = training_run.explain(config, numbers, facts, processes)
    return Planned(config, facts, model_config, numbers, explained)


def pretrain(config: PretrainRun, corpora: Corpora) -> None:
    """Train and write the model folder; every process must call it.

    Raises:
        UserError: something does not fit; nothing has been changed then.
    """
    facts, processes = corpora.facts, distributed.world_size()
    config = training_run.with_steps(config, facts.instances)
    model_config, numbers = plan(config, facts, processes)
    objective, kernels = make_objective(config, model_config)
    model = objective.model
    corpora = corpora.for_kernels(kernels)
    with run_folder.prepared(config, corpora) as peers:
        logger.info(training_run.explain(config, numbers, facts, processes))
        trained = training.fit(config, objective, corpora, numbers, peers)
        if trained is not None and distributed.is_main():
            training.write_model(config, corpora, model.config, trained, prefix="model")
        distributed.barrier()


def plan(
    config: PretrainRun, facts: DataFacts, processes: int
) -> tuple[LertConfig, training_run.Arithmetic]:
    """Return the model's configuration and the run's arithmetic, having checked what can be.

    Raises:
        ConfigError: something does not fit together.
    """
    model_config = config.architecture.model_config_for(facts, config.lip.tasks)
    if config.init_from is not None:
        tag_sets = model_config.tag_sets
        model_config = model_dir.read_config(model_dir.resolve(config.init_from))
        model_config.tag_sets = tag_sets
    positions = model_config.max_position_embeddings
    if facts.length > positions:
        raise ConfigError(
            f"{config.corpus[0]}: instances of {facts.length} tokens, but the model has "
            f"{positions} positions; set architecture.positions={facts.length} or prepare the "
            f"corpus with max_length={positions}"
        )
    parameters = model_dir.count_parameters(model_config)
    numbers = training_run.work_out(
        config, model_config, parameters, facts.length, processes, config.masked_share(facts.length)
    )
    return model_config, numbers


def make_objective(
    config: PretrainRun, model_config: LertConfig
) -> tuple[PretrainingObjective, Kernels]:
    """Return what a run trains, with its first weights, and the kernels in it.

    Raises:
        ConfigError: a kernel that is named cannot run here.
    """
    model = _make_model(config, model_config)
    kernels = training.set_up_model(config, model)
    # A treebank without entities, say: its tag set for NER is empty, and there is nothing to learn.
    without = [task for task in config.lip.tasks if task not in model_config.tasks]
    if without:
        logger.warning("%s: no tags for %s", config.corpus[0], ", ".join(without))
    lip = config.lip.model_copy(update={"tasks": model_config.tasks})
    fused_loss = kernels.loss == "fused"
    return PretrainingObjective(model, lip, config.train.steps, fused_loss=fused_loss), kernels


def _make_model(config: PretrainRun, model_config: LertConfig) -> LertForPreTraining:
    torch.manual_seed(config.seed)  # the same first weights on every process
    if config.init_from is None:
        model = LertForPreTraining(model_config)
        if config.architecture.start == "neighbours":
            start_with_neighbours(model)
    else:
        model, _ = model_dir.load(config.init_from, tag_sets=model_config.tag_sets)
    return model
