"""The sections that config.json fills."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertForSequenceClassification

from lert_ds import card_text, model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.model_origin import Origin
from lert_ds.modeling_lert import AUTO_CLASSES, LertForPreTraining, LertForSequenceClassification

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "今", "天"]
TAGS = {"dep": ["HED"], "pos": ["n", "v"]}


def write(folder: Path, cls: Any = LertForPreTraining, **changes: Any) -> dict[str, Any]:
    """Write a tiny model and return its config.json."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(PIECES), "intermediate_size": 6, "max_position_embeddings": 16}
    (folder.parent / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    model_dir.save(cls(LertConfig(**{**sizes, **changes})), folder.parent, folder)
    tree: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return tree


def test_what_it_is_names_its_models_as_they_are_called_elsewhere() -> None:
    origin = Origin("distilled", "From {0} and {1}.", ("hfl/a", "/home/me/runs/big/model"))
    run = {"sources": {"hub_models": ["hfl/a"]}, "parameters": {"before": 1234, "after": 2}}
    config = {"architectures": ["LertForPreTraining"], "tag_sets": TAGS}
    text = card_text.what_it_is(config, run, origin)
    assert text.startswith("From `hfl/a` and `big`. ")
    assert "heads that tag the masked words: part of speech, dependency relations." in text
    assert "It had 1,234 parameters before." in text
    # A name of two parts may be a folder: it is shown as one of the hub only where that is known.
    assert "`a`" in card_text.what_it_is(config, {}, origin)


def test_shape_by_layer_and_by_number() -> None:
    even = {"num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 21128}
    text = card_text.shape({**even, "tag_sets": TAGS}, 1_000_000)
    assert "| parameters | 1,000,000 |" in text
    assert "| attention heads | 12 |" in text
    assert "| feed-forward neurons | 3,072 |" in text
    assert text.index("pos tags | 2: `n v`") < text.index("dep tags | 1: `HED`")
    uneven = {"layer_attention_heads": [3, 3, 0], "layer_intermediate_sizes": [5, 6, 6]}
    text = card_text.shape({**even, **uneven}, None)
    assert "| attention heads | 3 × 2, 0 by layer |" in text
    assert "| feed-forward neurons | 5, 6 × 2 by layer |" in text
    assert "parameters" not in text
    assert "`yes, no`" in card_text.shape({"id2label": {"0": "yes", "1": "no"}}, None)


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_loading_is_told_by_the_auto_class_that_makes_it(name: str, tmp_path: Path) -> None:
    cls: Any = AUTO_CLASSES[name]
    config = write(tmp_path / "model", cls)
    text = card_text.use(config, "me/mine", "fill-mask")
    assert f'model = {name}.from_pretrained("me/mine", trust_remote_code=True)' in text
    assert "FOLDER" not in text
    assert "Where FOLDER is the path" in card_text.use(config, None, "fill-mask")


def test_plain_bert_loads_what_the_card_says_it_does(tmp_path: Path) -> None:
    config = write(tmp_path / "whole")
    assert "Plain `BertModel` and `BertForMaskedLM` load it too" in card_text.use(
        config, None, "fill-mask"
    )
    BertForMaskedLM.from_pretrained(tmp_path / "whole")
    config = write(tmp_path / "task", LertForSequenceClassification, num_labels=3)
    text = card_text.use(config, None, "text-classification")
    assert "Plain `BertForSequenceClassification` loads it too" in text
    assert "predict" not in text
    bert, facts = BertForSequenceClassification.from_pretrained(
        tmp_path / "task", output_loading_info=True
    )
    assert not facts["missing_keys"]
    lert, _ = model_dir.load(tmp_path / "task", LertForSequenceClassification)
    ids = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(bert.eval()(ids).logits, lert.eval()(ids).logits)
    config = write(tmp_path / "cut", layer_attention_heads=[1, 0])
    assert "plain `BertModel` does not load it" in card_text.use(config, None, "fill-mask")


def test_predict_tags_where_there_are_heads() -> None:
    config = {"architectures": ["LertForPreTraining"], "tag_sets": TAGS}
    assert "lert-ds predict me/x --tag" in card_text.use(config, "me/x", "fill-mask")
    text = card_text.use({**config, "tag_sets": None}, "me/x", "fill-mask")
    assert "lert-ds predict me/x '他在[MASK]" in text
    assert "--tag" not in text


def test_a_configuration_of_wrong_types() -> None:
    config: dict[str, Any] = {
        "architectures": ["a b"],
        "auto_map": [1],
        "tag_sets": {"pos": "n", "x": ["<b>"]},
        "layer_attention_heads": ["many"],
        "hidden_size": "<script>",
    }
    for text in (card_text.shape(config, None), card_text.use(config, None, "fill-mask")):
        assert "<script>" not in text
    assert card_text.architecture_of(config) == card_text.architecture_of({}) == ""
    assert "AutoModel.from_pretrained" in card_text.use({}, None, "feature-extraction")
