"""Model folder to TensorFlow checkpoint: ours, and those that transformers has written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForTokenClassification,
    BertModel,
)

from lert_ds import model_dir
from lert_ds.convert.mapping import MLM, POOLER, entries
from lert_ds.convert.to_checkpoint import CONFIGURATION, NAME, CheckpointPlan
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of
from lert_ds.modeling_lert import LertForPreTraining, LertForSequenceClassification

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。", "##a", "b"]
SHAPE: dict[str, Any] = {
    "vocab_size": len(PIECES),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES), "utf-8")
    return folder


def random(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.fixture
def save(tmp_path: Path, vocabulary: Path) -> Any:
    """Save a random LERT with changes to its configuration; return the folder and the weights."""

    def write(cls: Any = LertForPreTraining, pieces: Path = vocabulary, **changes: Any) -> Any:
        from lert_ds.configuration_lert import LertConfig

        model = random(cls(LertConfig(**{**SHAPE, **changes})))
        model_dir.save(model, pieces, tmp_path / "model")
        return tmp_path / "model", dict(model.named_parameters())

    return write


@pytest.fixture
def save_bert(tmp_path: Path, vocabulary: Path) -> Any:
    """Save what transformers makes: class → folder, and its weights by their names there."""

    def write(cls: Any, **options: Any) -> Any:
        folder = tmp_path / "bert"
        model = random(cls(BertConfig(**SHAPE)))
        model.save_pretrained(folder, **options)
        (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        return folder, dict(model.named_parameters())

    return write


def variables_of(store: Any, folder: Path) -> dict[str, Any]:
    checkpoint = store.Checkpoint(folder / NAME)
    return {name: checkpoint.read(name) for name in checkpoint.shapes}


def check(store: Any, folder: Path, weights: dict[str, Any], config: Any, parts: set[str]) -> None:
    """Check that `folder` holds the parts and no more, with the numbers of `weights`."""
    found = variables_of(store, folder)
    for entry in entries(config):
        if entry.part in parts:
            values = weights[entry.parameter].detach().float().numpy()
            expected = values.T if entry.transposed else values
            assert np.array_equal(found.pop(entry.variable), expected), entry.variable
    assert not found


@pytest.mark.parametrize("tasks", [("pos", "ner", "dep"), ("ner",), ()])
def test_our_folders(store: Any, save: Any, tiny_config: Any, tmp_path: Path, tasks: Any) -> None:
    tag_sets = {task: tiny_config().tag_sets[task] for task in tasks}
    folder, weights = save(tag_sets=tag_sets or None)
    plan = CheckpointPlan(str(folder))
    plan.write(tmp_path / "tf", {"converted_from": "here"})
    check(store, tmp_path / "tf", weights, tiny_config(), {"encoder", MLM, *tasks})
    assert set(plan.match.missing) == {POOLER, "pos", "ner", "dep"} - set(tasks)
    tree = json.loads((tmp_path / "tf" / CONFIGURATION).read_text("utf-8"))
    assert tree == {**SHAPE, "type_vocab_size": 2, "hidden_act": "gelu", "initializer_range": 0.02,
                    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # fmt: skip
    assert sha256_of(tmp_path / "tf" / "vocab.txt") == sha256_of(folder / "vocab.txt")
    run = json.loads((tmp_path / "tf" / "run.json").read_text("utf-8"))
    assert run["files"] == {
        name: sha256_of(folder / name) for name in ("config.json", "model.safetensors")
    }
    assert {path.name for path in (tmp_path / "tf").iterdir()} == {
        f"{NAME}.index", f"{NAME}.data-00000-of-00001", CONFIGURATION, "vocab.txt", "run.json",
    }  # fmt: skip


@pytest.mark.parametrize("cls", [BertForPreTraining, BertForMaskedLM, BertModel])
def test_folders_of_transformers(
    stand_in: Any, save_bert: Any, tiny_config: Any, tmp_path: Path, cls: Any
) -> None:
    """As hfl/chinese-lert-base and the like: a BERT, with a pooler and without linguistic heads."""
    folder, weights = save_bert(cls, max_shard_size="2KB" if cls is BertForMaskedLM else "50GB")
    if cls is BertModel:
        weights = {f"bert.{name}": tensor for name, tensor in weights.items()}
    plan = CheckpointPlan(str(folder))
    plan.write(tmp_path / "tf", {})
    parts = {"encoder", MLM, POOLER} - set(plan.match.missing)
    assert (MLM in parts, POOLER in parts) == (cls is not BertModel, cls is not BertForMaskedLM)
    check_with(stand_in, tmp_path / "tf", weights, tiny_config(), parts)
    reasons = set(plan.match.left_out.values())
    assert bool(reasons) == (cls is BertForPreTraining)


def check_with(stand_in: Any, folder: Path, weights: Any, config: Any, parts: set[str]) -> None:
    class Store:
        Checkpoint = stand_in

    check(Store, folder, weights, config, parts)


def test_old_names_in_a_pickle(
    stand_in: Any, save_bert: Any, tiny_config: Any, tmp_path: Path
) -> None:
    """The released PyTorch models are of that kind."""
    folder, weights = save_bert(BertForPreTraining)
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(16)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"].clone()
    assert old.keys() != tensors.keys()
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    CheckpointPlan(str(folder)).write(tmp_path / "tf", {})
    check_with(stand_in, tmp_path / "tf", weights, tiny_config(), {"encoder", MLM, POOLER})


def test_a_bias_that_is_the_decoders_alone(
    stand_in: Any, save: Any, tiny_config: Any, tmp_path: Path
) -> None:
    folder, weights = save()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    save_file(tensors, path)
    CheckpointPlan(str(folder)).write(tmp_path / "tf", {})
    check_with(stand_in, tmp_path / "tf", weights, tiny_config(), {"encoder", MLM})


def test_the_vocabulary_is_copied_as_it_is_or_made_anew(
    stand_in: Any, save: Any, vocabulary: Path, tmp_path: Path
) -> None:
    content = (vocabulary / "vocab.txt").read_bytes()
    (vocabulary / "vocab.txt").write_bytes(content.removesuffix(b"\n"))
    folder, _ = save(pieces=vocabulary)
    CheckpointPlan(str(folder)).write(tmp_path / "tf", {})
    assert (tmp_path / "tf" / "vocab.txt").read_bytes() == content.removesuffix(b"\n")
    (folder / "vocab.txt").unlink()
    CheckpointPlan(str(folder)).write(tmp_path / "tf", {})
    assert (tmp_path / "tf" / "vocab.txt").read_bytes() == content


def test_a_fine_tuned_folder_keeps_its_task_head_to_itself(
    stand_in: Any, save: Any, save_bert: Any, tiny_config: Any, tmp_path: Path
) -> None:
    folder, weights = save(LertForSequenceClassification)
    plan = CheckpointPlan(str(folder))
    assert plan.match.left_out.keys() == {"classifier.weight", "classifier.bias"}
    assert set(plan.match.missing) == {MLM, "pos", "ner", "dep"}
    plan.write(tmp_path / "tf", {})
    check_with(stand_in, tmp_path / "tf", weights, tiny_config(), {"encoder", POOLER})
    folder, _ = save_bert(BertForTokenClassification)
    assert set(CheckpointPlan(str(folder)).match.missing) == {MLM, POOLER, "pos", "ner", "dep"}


def test_half_precision_becomes_float32(
    stand_in: Any, save: Any, tiny_config: Any, tmp_path: Path
) -> None:
    folder, weights = save()
    path = folder / "model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path, {"format": "pt"})
    CheckpointPlan(str(folder)).write(tmp_path / "tf", {})
    rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
    check_with(stand_in, tmp_path / "tf", rounded, tiny_config(), {"encoder", MLM})


def test_layers_pruned_alike_become_the_size_of_all(
    stand_in: Any, save: Any, tiny_config: Any, tmp_path: Path
) -> None:
    folder, weights = save(layer_intermediate_sizes=[9, 9], layer_attention_heads=[3, 3])
    plan = CheckpointPlan(str(folder))
    assert plan.configuration()["intermediate_size"] == 9
    plan.write(tmp_path / "tf", {})
    config = tiny_config(intermediate_size=9)
    check_with(stand_in, tmp_path / "tf", weights, config, {"encoder", MLM})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layer_intermediate_sizes": [9, 20]}, "layers of different sizes"),
        ({"layer_intermediate_sizes": [0, 0]}, "layers of different sizes"),
        ({"layer_attention_heads": [2, 3]}, "attention heads pruned"),
        ({"layer_attention_heads": [2, 2]}, "attention heads pruned"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps = 1e-05"),
        ({"hidden_act": "silu"}, "hidden_act = silu"),
        ({"vocab_size": 20}, r"its tokenizer has 17 pieces, the model embeds 20"),
    ],
)
def test_what_tensorflows_bert_cannot_be_is_refused(
    save: Any, changes: dict[str, Any], told: str
) -> None:
    folder, _ = save(**changes)
    with pytest.raises(ModelError, match=told) as error:
        CheckpointPlan(str(folder))
    assert str(error.value).startswith(f"{folder}: ")


def test_a_decoder_of_its_own_is_refused(save: Any) -> None:
    folder, weights = save()
    path = folder / "model.safetensors"
    own = weights["bert.embeddings.word_embeddings.weight"].detach() + 1
    save_file(load_file(path) | {"cls.predictions.decoder.weight": own}, path)
    with pytest.raises(ModelError, match=r"decoder.weight is not tied to .*word_embeddings"):
        CheckpointPlan(str(folder))


def test_an_unknown_tensor_is_refused(save: Any) -> None:
    folder, _ = save()
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"bert.adapter.weight": torch.ones(3)}, path)
    with pytest.raises(ModelError, match=r"another architecture, with bert\.adapter\.weight"):
        CheckpointPlan(str(folder))


def test_other_tags_go_along(save: Any, tiny_config: Any) -> None:
    tags = {"pos": ["NOUN", "VERB"], "dep": tiny_config().tag_sets["dep"]}
    folder, _ = save(tag_sets=tags)
    assert CheckpointPlan(str(folder)).configuration()["tag_sets"] == tags


def test_a_damaged_file_is_named(save: Any, tmp_path: Path) -> None:
    folder, _ = save()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"model.safetensors: its weights cannot be read"):
        CheckpointPlan(str(folder))
