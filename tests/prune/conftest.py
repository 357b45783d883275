"""Small models of the tiny corpus, configurations that prune one, an edge folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import cli, model_dir
from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.shards import HELD_OUT
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from prune.prune_config import PruneRun


@pytest.fixture(scope="session")
def small_model(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of three layers of 16, four heads, 24 neurons, 45 pieces; random weights."""
    torch.manual_seed(3)
    config = LertConfig(
        vocab_size=45, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=32, initializer_range=0.2,
        tag_sets={task: list(LTP_TAGS[task]) for task in ("pos", "dep")},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("small") / "model"
    model_dir.save(LertForPreTraining(config), tiny_corpus, folder)
    return folder


@pytest.fixture
def prune_run(small_model: Path, tiny_corpus: Path, tmp_path: Path) -> Callable[..., PruneRun]:
    """Changes → the configuration of a pruning of the small model by few instances."""

    def make(**changes: Any) -> PruneRun:
        tree = {
            "model": str(small_model),
            "output": str(tmp_path / "pruned"),
            "corpus": str(tiny_corpus),
            "corpus_valid": str(tiny_corpus / HELD_OUT),
            "scoring": {"method": "fisher", "instances": 16, "batch_size": 8},
            "repair": {"instances": 32},
        }
        return parse(PruneRun, tree | changes, "test")

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of two layers and 40 positions, whose outputs are wide apart."""
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=45, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=40,
        tag_sets={task: list(LTP_TAGS[task]) for task in ("pos", "dep")},
    )  # fmt: skip
    model = LertForPreTraining(config).eval()
    with torch.no_grad():  # so that a wrong answer shows
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("tiny") / "run" / "model"
    model_dir.save(model, tiny_corpus, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_edge(tiny_model: Path) -> Path:
    """The edge folder of `tiny_model`, filled at its [MASK]s alone, fp32 and int8."""
    folder = tiny_model.parents[1] / "edge"
    text = folder.with_name("text.txt")
    text.write_text("".join(map(chr, range(0x4E00, 0x4E28))) * 5, "utf-8")
    words = [f"model={tiny_model}", f"output={folder}", f"text={text}", "masked_positions=true"]
    cli.main(["export", "export-edge", *words])
    return folder
