"""Where a model comes from: folders, hub names, and what is refused before weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from lert_ds import model_source
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A model folder of BERT with a tokenizer; its weights are never read here."""
    folder = tmp_path / "bert"
    BertConfig(vocab_size=8, hidden_size=32, num_attention_heads=4).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "今", "天", "##a"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    return folder


def test_a_folder_is_itself(bert: Path) -> None:
    assert model_source.resolve(bert) == bert
    assert model_source.resolve(str(bert)) == bert


def test_a_path_that_is_no_folder_is_refused(bert: Path) -> None:
    with pytest.raises(ModelError, match=r"vocab.txt: this is a file"):
        model_source.resolve(bert / "vocab.txt")
    with pytest.raises(ModelError, match="there is no such model folder"):
        model_source.resolve(bert / "a" / "b")


def test_a_hub_name_without_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("offline\nmode")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    message = "hfl/chinese-lert-base: no folder of this name is here, and the Hugging Face hub .*"
    with pytest.raises(ModelError, match=rf"{message}offline mode"):
        model_source.resolve("hfl/chinese-lert-base")


def test_a_pickle_is_fetched_only_where_there_is_nothing_else(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hub(name: str, allow_patterns: list[str]) -> str:
        asked.append("pytorch_model.bin" in allow_patterns)
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert model_source.resolve("hfl/chinese-lert-base") == bert
    (bert / "model.safetensors").unlink()
    model_source.resolve("hfl/chinese-lert-base")
    assert asked == [False, False, True]


def test_a_bert_is_read_as_a_lert(bert: Path) -> None:
    config = model_source.read_config(bert, hidden_dropout_prob=0.25)
    assert config.model_type == "lert"
    assert (config.hidden_size, config.hidden_dropout_prob) == (32, 0.25)


def test_another_architecture_is_refused(bert: Path) -> None:
    tree = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**tree, "model_type": "gpt2"}))
    with pytest.raises(ModelError, match=r"config.json: model_type is 'gpt2'; a bert or lert"):
        model_source.read_config(bert)


def test_the_tokenizer_of_another_model_is_refused(bert: Path) -> None:
    model_source.check_tokenizer(bert, sha256_of(bert / "vocab.txt"))
    with pytest.raises(ModelError, match="its tokenizer differs from that of the corpus"):
        model_source.check_tokenizer(bert, "0" * 64)


def test_a_configuration_may_have_another_name(bert: Path) -> None:
    tree = json.loads((bert / "config.json").read_text())
    tree.pop("model_type")  # as Google's
    path = bert / "bert_config.json"
    path.write_text(json.dumps(tree))
    assert model_source.read_config_file(path).hidden_size == 32
    path.write_text("{")
    with pytest.raises(ModelError, match=r"bert_config\.json: not JSON"):
        model_source.read_config_file(path)
