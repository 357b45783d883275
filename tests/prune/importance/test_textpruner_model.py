import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import masked_logits
from prune.importance import textpruner_model
from prune.importance.rows import masked_rows
from prune.importance.textpruner_model import (
    AsBert,
    FrugalPruner,
    TransformerPruningConfig,
    as_mappings,
    refuse_uneven,
)


def make_model(**changes: object) -> LertForPreTraining:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 45, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 12, "max_position_embeddings": 16, "initializer_range": 0.2,
        "tag_sets": {task: list(LTP_TAGS[task]) for task in ("pos", "dep")},
    }  # fmt: skip
    return LertForPreTraining(LertConfig(**shape | changes)).eval()


def make_batch(masked: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 45, (4, 8), generator=generator)
    real = torch.arange(8) < torch.tensor([8, 6, 8, 7])[:, None]
    positions = torch.tensor([1, 9, 11, 20, 30])[:masked]
    tags = {
        task: torch.randint(0, len(LTP_TAGS[task]), (5,), generator=generator)[:masked]
        for task in ("pos", "dep")
    }
    tags["dep"][:3] = IGNORE_INDEX
    return Batch(ids, real, positions, ids.flatten()[positions], tags)


@pytest.mark.parametrize("tasks", [(), ("pos",), ("pos", "dep")])
def test_the_loss_is_that_of_the_heads_at_the_masked_positions(tasks: tuple[str, ...]) -> None:
    model, batch = make_model(), make_batch()
    found = AsBert(model, masked_rows(tasks), False, "fp32")(**batch._asdict())["loss"]
    logits = masked_logits(model, batch)
    wanted = functional.cross_entropy(logits["mlm"], batch.labels)
    for task in tasks:
        wanted += functional.cross_entropy(
            logits[task], batch.tags[task], ignore_index=IGNORE_INDEX
        )
    torch.testing.assert_close(found, wanted)


def test_logits_are_those_of_every_position() -> None:
    model, batch = make_model(), make_batch()
    found = AsBert(model, masked_rows(), True, "fp32")(**batch._asdict())["logits"]
    assert found.shape == (4, 8, 45)
    wanted = masked_logits(model, batch)["mlm"]
    torch.testing.assert_close(found.flatten(0, 1)[batch.masked_positions], wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_the_loss_and_of_the_copy_that_gives_labels(precision: Any) -> None:
    model, batch = make_model(), make_batch()
    exact = AsBert(model, masked_rows(), False, "fp32")(**batch._asdict())["loss"]
    loss = AsBert(model, masked_rows(), False, precision)(**batch._asdict())["loss"]
    assert (loss == exact) == (precision == "fp32")
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    pruner = FrugalPruner(
        model, TransformerPruningConfig(use_logits=True), masked_rows(), precision
    )
    assert pruner.model_rep.lert.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert model.dtype == torch.float32
    labels, logits = (
        each(**batch._asdict())["logits"] for each in (pruner.model_rep, pruner.model)
    )
    assert logits.dtype == torch.float32
    torch.testing.assert_close(labels.float(), logits, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("use_logits", [False, True])
def test_no_gradient_is_computed_that_is_not_read(use_logits: bool) -> None:
    model = make_model()
    seen: list[set[str]] = []

    def look(*_: object) -> None:
        seen.append({name for name, weight in model.named_parameters() if weight.requires_grad})

    model.register_forward_pre_hook(look)
    config = TransformerPruningConfig(use_logits=use_logits)
    FrugalPruner(model, config, masked_rows(), "fp32").scores(as_mappings([make_batch()]))
    names = {name.partition("encoder.layer.")[2][2:] for name in seen[0]}
    assert names == {
        "attention.output.dense.weight", "intermediate.dense.weight", "intermediate.dense.bias",
        "output.dense.weight",
    }  # fmt: skip
    assert all(weight.requires_grad for weight in model.parameters())


def test_nothing_is_written_and_no_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pruner = FrugalPruner(make_model(), TransformerPruningConfig(), masked_rows(), "fp32")
    pruner.scores(as_mappings([make_batch()]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("terminal", "rank", "shown"), [(False, "0", False), (True, "0", True), (True, "1", False)]
)
def test_bars_are_for_one_who_looks(
    terminal: bool,
    rank: str,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    stock = textpruner_model.transformer_pruner.tqdm
    pruner = FrugalPruner(make_model(), TransformerPruningConfig(), masked_rows(), "fp32")
    pruner.scores(as_mappings([make_batch()]))
    printed = capsys.readouterr()
    assert ("Calculating IS" in printed.err) == shown
    assert not printed.out
    assert textpruner_model.transformer_pruner.tqdm is stock


def test_batches_with_nothing_masked_are_left_out() -> None:
    found = as_mappings([make_batch(0), make_batch(2), make_batch(0)])
    assert len(found) == 1
    assert isinstance(found[0]["labels"], Tensor)
    assert next(iter(found[0])) == "input_ids"  # whose length TextPruner takes for the instances


@pytest.mark.parametrize(
    "shape",
    [
        {"layer_attention_heads": [2, 1]},
        {"layer_attention_heads": [0, 0]},
        {"layer_intermediate_sizes": [12, 8]},
        {"layer_intermediate_sizes": [0, 0]},
    ],
)
def test_uneven_and_empty_layers_are_refused(shape: dict[str, list[int]]) -> None:
    with pytest.raises(ConfigError, match="score by fisher"):
        refuse_uneven(make_model(**shape).config)
    refuse_uneven(make_model(layer_attention_heads=[1, 1]).config)
