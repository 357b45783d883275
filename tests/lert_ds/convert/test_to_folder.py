"""TensorFlow checkpoint to model folder: the very numbers, and nothing that was not there."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertModel

from lert_ds import model_dir
from lert_ds.convert.mapping import MLM, POOLER, entries
from lert_ds.convert.source import Choice, open_source
from lert_ds.convert.to_folder import FolderPlan
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining, LertForSequenceClassification, LertModel

IDS = torch.tensor([[2, 5, 6, 4, 8, 3], [2, 9, 4, 11, 12, 3]])


def convert(source: Path, folder: Path, **record: Any) -> FolderPlan:
    with open_source(source, Choice()) as files:
        plan = FolderPlan(files)
        plan.write(folder, record)
    return plan


def test_every_number_is_moved(
    store: Any, write_checkpoint: Any, tiny_config: Any, tmp_path: Path
) -> None:
    variables = write_checkpoint(store, tmp_path / "tf")
    convert(tmp_path / "tf", tmp_path / "model", converted_from="there")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    for entry in entries(tiny_config()):
        values = tensors.pop(entry.parameter).numpy()
        assert np.array_equal(values.T if entry.transposed else values, variables[entry.variable])
    assert not tensors
    tree = json.loads((tmp_path / "model" / "run.json").read_text("utf-8"))
    assert tree["converted_from"] == "there"
    assert tree["files"] == {path.name: sha256_of(path) for path in (tmp_path / "tf").iterdir()}


def test_it_loads_with_all_its_heads(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(stand_in, tmp_path / "tf")
    convert(tmp_path / "tf", tmp_path / "model")
    caplog.set_level(logging.INFO)
    model, report = model_dir.load(tmp_path / "model")
    assert type(model) is LertForPreTraining
    assert (report.random, report.unused) == (
        (),
        ("bert.pooler.dense.bias", "bert.pooler.dense.weight"),
    )
    assert "left unread: bert.pooler.dense" in caplog.text
    assert model.config.tag_sets == {task: list(tags) for task, tags in LTP_TAGS.items()}
    bert = BertForMaskedLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(bert(IDS).logits, model(IDS).logits)


def test_the_pooler_reaches_who_has_use_for_it(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path
) -> None:
    variables = write_checkpoint(stand_in, tmp_path / "tf")
    convert(tmp_path / "tf", tmp_path / "model")
    kernel = torch.from_numpy(variables["bert/pooler/dense/kernel"].T)
    for cls in (LertForSequenceClassification, LertModel):
        model, report = model_dir.load(tmp_path / "model", cls)
        assert not [name for name in report.random if "classifier" not in name]
        pooler = model.pooler if cls is LertModel else model.bert.pooler
        assert torch.equal(pooler.dense.weight, kernel)
    plain = BertModel.from_pretrained(tmp_path / "model")
    assert torch.equal(plain.pooler.dense.weight, kernel)


@pytest.mark.parametrize(
    ("without", "tasks"),
    [(("pos",), ("ner", "dep")), (("pos", "ner", "dep"), ()), ((POOLER, "dep"), ("pos", "ner"))],
)
def test_heads_that_are_not_there_are_not_made(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, without: Any, tasks: Any
) -> None:
    write_checkpoint(stand_in, tmp_path / "tf", without=without)
    plan = convert(tmp_path / "tf", tmp_path / "model")
    assert set(plan.match.missing) == set(without)
    model, report = model_dir.load(tmp_path / "model")
    assert model.config.tasks == tasks
    assert report.random == ()
    assert bool(report.unused) == (POOLER not in without)


@pytest.mark.parametrize("pooler", [True, False])
def test_an_encoder_alone_stays_one(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, pooler: bool
) -> None:
    without = (MLM, "pos", "ner", "dep", *(() if pooler else (POOLER,)))
    variables = write_checkpoint(stand_in, tmp_path / "tf", without=without)
    convert(tmp_path / "tf", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LertModel"]
    model, report = model_dir.load(tmp_path / "model", LertModel)
    assert report.random == (() if pooler else ("pooler.dense.bias", "pooler.dense.weight"))
    words = torch.from_numpy(variables["bert/embeddings/word_embeddings"])
    assert torch.equal(model.embeddings.word_embeddings.weight, words)
    whole, report = model_dir.load(tmp_path / "model")
    assert torch.equal(whole.bert.embeddings.word_embeddings.weight, words)
    assert all(name.startswith("cls.") for name in report.random)


def test_optimizer_and_next_sentence_stay_behind(
    store: Any, write_checkpoint: Any, tmp_path: Path
) -> None:
    more = {
        "bert/pooler/dense/bias/adam_m": np.ones(12, np.float32),
        "cls/seq_relationship/output_weights": np.ones((2, 12), np.float32),
        "cls/seq_relationship/output_bias": np.ones(2, np.float32),
        "global_step": np.array(7, np.float32),
    }
    write_checkpoint(store, tmp_path / "tf", more=more)
    plan = convert(tmp_path / "tf", tmp_path / "model")
    assert plan.match.left_out.keys() == more.keys()
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert tensors.keys() == {entry.parameter for entry in plan.match.entries}


def test_tags_of_ones_own_are_named_by_the_configuration(
    stand_in: Any, write_checkpoint: Any, tiny_config: Any, tmp_path: Path
) -> None:
    tags = {"pos": ["NOUN", "VERB"], "dep": ["nsubj", "obj", "root"]}
    given = {"config": tiny_config(tag_sets=tags)}
    write_checkpoint(stand_in, tmp_path / "tf", says={"tag_sets": tags}, **given)
    convert(tmp_path / "tf", tmp_path / "model")
    assert model_dir.load(tmp_path / "model")[0].config.tag_sets == tags
    write_checkpoint(stand_in, tmp_path / "tf", **given)
    with pytest.raises(ModelError, match=r"is \[12, 2\], but the tag set of pos makes it"):
        convert(tmp_path / "tf", tmp_path / "other")
    given = {"config": tiny_config(tag_sets={"mood": ["good", "bad"]})}
    write_checkpoint(stand_in, tmp_path / "tf", **given)
    with pytest.raises(ModelError, match=r"head mood, for which .*lert_config.json names no tags"):
        convert(tmp_path / "tf", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pieces": 16}, r"vocab.txt: 16 pieces, but lert_config.json says vocab_size = 17"),
        ({"says": {"hidden_size": 24}}, r"hidden_size = 24 .* \[17, 24\], .* \[17, 12\]"),
        ({"says": {"num_hidden_layers": 12}}, r"num_hidden_layers = 12, but .* has 2 layers"),
        ({"says": {"model_type": "electra"}}, r"lert_config.json: model_type is 'electra'"),
        ({"says": {"num_attention_heads": 5}}, r"hidden_size = 12 is no multiple of"),
        ({"more": {"electra/x": np.ones(1, np.float32)}}, r"looks like an ELECTRA, with electra/x"),
    ],
)
def test_what_does_not_fit_is_refused(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, given: Any, told: str
) -> None:
    write_checkpoint(stand_in, tmp_path / "tf", **given)
    with pytest.raises(ModelError, match=told):
        convert(tmp_path / "tf", tmp_path / "model")
    assert not (tmp_path / "model").exists()
