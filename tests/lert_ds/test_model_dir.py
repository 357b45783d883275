"""Model folders: what is saved loads everywhere, and what is read is told."""

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, GPT2Config

from lert_ds import model_card, model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of
from lert_ds.modeling_lert import (
    LertForMaskedLM,
    LertForPreTraining,
    LertForSequenceClassification,
    LertModel,
)

TAGS = {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"]}
UNEVEN = {"layer_attention_heads": [0, 3], "layer_intermediate_sizes": [17, 0]}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。", "##a", "b"]
SIZES: dict[str, Any] = {
    "vocab_size": len(PIECES),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
}
IDS = torch.tensor([[2, 5, 6, 4, 8, 3], [2, 9, 4, 11, 12, 3]])


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    return folder


def randomise(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_model(**changes: Any) -> LertForPreTraining:
    model: LertForPreTraining = randomise(
        LertForPreTraining(LertConfig(**{**SIZES, "tag_sets": TAGS, **changes}))
    )
    return model


def save_bert(folder: Path, cls: Any = BertForMaskedLM, **changes: Any) -> Any:
    model = randomise(cls(BertConfig(**{**SIZES, **changes})))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("shape", [{}, UNEVEN])
def test_save_and_load_give_the_same_model(
    shape: dict[str, Any], vocabulary: Path, tmp_path: Path
) -> None:
    model, folder = make_model(**shape), tmp_path / "out" / "model"
    model_dir.save(model, vocabulary, folder, {"step": 7})
    again, report = model_dir.load(folder)
    assert type(again) is LertForPreTraining
    assert (report.folder, report.weights) == (folder, "model.safetensors")
    assert (report.random, report.unused) == ((), ())
    assert not again.training
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    for task in TAGS:
        assert torch.equal(again(IDS).tag_logits[task], model(IDS).tag_logits[task])
    assert again.config.tag_sets == TAGS
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight


def test_folder_holds_what_its_readers_need(vocabulary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model_dir.save(make_model(), vocabulary, folder, {"step": 7})
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "run.json",
        "README.md",
        "configuration_lert.py",
        "modeling_lert.py",
    }
    assert json.loads((folder / "run.json").read_text()) == {"step": 7}
    assert sha256_of(folder / "vocab.txt") == sha256_of(vocabulary / "vocab.txt")
    assert "cls.predictions.decoder.weight" not in load_file(folder / "model.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "model"}


def test_unpruned_loads_in_bert(vocabulary: Path, tmp_path: Path) -> None:
    model, folder = make_model(), tmp_path / "model"
    model_dir.save(model, vocabulary, folder)
    bert = BertForMaskedLM.from_pretrained(folder).eval()
    assert float((bert(IDS).logits - model(IDS).logits).detach().abs().max()) == 0
    encoder = BertModel.from_pretrained(folder).eval()
    assert torch.equal(encoder(IDS).last_hidden_state, model.bert(IDS).last_hidden_state)


ISOLATED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lert_ds":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

given = {"trust_remote_code": True}
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, **given)
    ids = tokenizer("今天[MASK]很好", return_tensors="pt").input_ids
    masked = AutoModelForMaskedLM.from_pretrained(folder, **given).eval()
    whole = AutoModelForPreTraining.from_pretrained(folder, **given).eval()
    encoder = AutoModel.from_pretrained(folder, **given).eval()
    masked.save_pretrained(folder + ".again")
    results = {
        "ids": ids,
        "masked": masked(ids).logits,
        "tags": dict(whole(ids).tag_logits),
        "hidden": encoder(ids).last_hidden_state,
    }
    torch.save(results, folder + ".pt")
assert not any(name.startswith("lert_ds") for name in sys.modules)
"""


def test_loads_where_the_package_is_not_installed(vocabulary: Path, tmp_path: Path) -> None:
    models = {tmp_path / "even": make_model(), tmp_path / "uneven": make_model(**UNEVEN)}
    for folder, model in models.items():
        model_dir.save(model, vocabulary, folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", ISOLATED, *map(str, models)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for folder, model in models.items():
        theirs = torch.load(f"{folder}.pt")
        assert theirs["ids"].tolist() == [[2, 5, 6, 4, 8, 9, 3]]
        ours = model(theirs["ids"])
        torch.testing.assert_close(theirs["masked"], ours.logits)
        for task in TAGS:
            torch.testing.assert_close(theirs["tags"][task], ours.tag_logits[task])
        torch.testing.assert_close(theirs["hidden"], model.bert(theirs["ids"]).last_hidden_state)
        # What is saved there still loads, here too.
        again, _ = model_dir.load(f"{folder}.again", LertForMaskedLM)
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_bert_is_read_and_told_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bert = save_bert(tmp_path / "bert", BertForPreTraining)
    with caplog.at_level(logging.INFO):
        model, report = model_dir.load(tmp_path / "bert", tag_sets=TAGS)
    assert torch.equal(model(IDS).logits, bert(IDS).prediction_logits)
    assert set(report.random) == {
        f"cls.predictions.output_{task}.{kind}" for task in TAGS for kind in ("weight", "bias")
    }
    assert "bert.pooler.dense.weight" in report.unused
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    told = warning.getMessage()
    assert "RANDOM" in told
    assert "cls.predictions.output_ner, cls.predictions.output_pos" in told
    assert "cls.seq_relationship" in caplog.text
    assert model.config.model_type == "lert"


def test_encoder_alone_leaves_the_mlm_head_random(tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert", BertModel)
    model, report = model_dir.load(tmp_path / "bert")
    assert torch.equal(model.bert(IDS).last_hidden_state, bert(IDS).last_hidden_state)
    assert "cls.predictions.transform.dense.weight" in report.random
    assert not [name for name in report.random if name.startswith("bert.")]


def test_heads_are_kept_where_the_tags_agree(vocabulary: Path, tmp_path: Path) -> None:
    model, folder = make_model(), tmp_path / "model"
    model_dir.save(model, vocabulary, folder)
    wanted = {"pos": ("n", "v", "a"), "ner": ("S-Ns", "O"), "dep": ("HED", "ATT")}
    again, report = model_dir.load(folder, tag_sets=wanted)
    assert torch.equal(again(IDS).tag_logits["pos"], model(IDS).tag_logits["pos"])
    # The same two tags in another order: the old weights would mean the wrong tag.
    assert set(report.random) == {
        f"cls.predictions.output_{task}.{kind}"
        for task in ("ner", "dep")
        for kind in ("weight", "bias")
    }
    assert not torch.equal(again.tag_head("ner").weight, model.tag_head("ner").weight)
    assert again.config.tasks == ("pos", "ner", "dep")
    alone, report = model_dir.load(folder, tag_sets={})
    assert alone.config.tasks == ()
    assert report.random == ()


def test_task_class_has_no_tag_heads(vocabulary: Path, tmp_path: Path) -> None:
    model_dir.save(make_model(), vocabulary, tmp_path / "model")
    classifier, report = model_dir.load(
        tmp_path / "model", LertForSequenceClassification, num_labels=3
    )
    assert classifier.classifier.out_features == 3
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(report.random)
    model_dir.save(classifier, vocabulary, tmp_path / "classifier")
    assert model_dir.read_config(tmp_path / "classifier").tag_sets is None


def test_pickled_weights_of_other_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As hfl/chinese-lert-* and old BERTs have them: gamma and beta, no decoder bias, buffers."""
    bert = randomise(BertForMaskedLM(BertConfig(**SIZES)))
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in bert.state_dict().items()
        if name != "cls.predictions.decoder.bias"
    }
    weights["bert.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "type_vocab_size": 2}))
    model, report = model_dir.load(tmp_path)
    assert torch.equal(model(IDS).logits, bert(IDS).logits)
    assert report.random == ()
    assert "no safetensors; reading the tensors of pytorch_model.bin" in caplog.text


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    save_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for write in (torch.save, lambda tree, path: path.write_bytes(pickle.dumps(tree))):
        write({"bert.pooler.dense.bias": Evil()}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pytorch_model.bin: its weights cannot be read"):
            model_dir.load(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_nothing_of_a_folder_leads_elsewhere_or_runs(tmp_path: Path) -> None:
    """What transformers would follow: code, other files, an adapter, kernels, a pickle's shards."""
    folder, trace = tmp_path / "model", tmp_path / "trace"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(trace),)

    expected = save_bert(folder).state_dict()
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    save_file({"a": torch.ones(1)}, folder / "shard-00000-model-00001-of-00001.safetensors")
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    (folder / "modeling_evil.py").write_text(f"import os; os.mkdir({str(trace)!r})\n")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    write_config(
        folder,
        auto_map=dict.fromkeys(("AutoConfig", "AutoModelForMaskedLM"), "modeling_evil.Model"),
        transformers_weights="../other.safetensors",
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
        fusion_config={"patch_embeddings": True},
        attn_implementation="somebody/attention",
        custom_pipelines={"fill": {"impl": "modeling_evil.Pipeline"}},
    )
    model, report = model_dir.load(folder)
    assert (report.weights, report.random) == ("model.safetensors", ())
    for name, tensor in expected.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.config._attn_implementation == "sdpa"
    assert not trace.exists()


def test_safetensors_go_before_a_pickle(tmp_path: Path) -> None:
    save_bert(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert model_dir.load(tmp_path)[1].weights == "model.safetensors"


def test_loads_in_the_type_that_is_asked(vocabulary: Path, tmp_path: Path) -> None:
    model_dir.save(make_model().bfloat16(), vocabulary, tmp_path / "model")
    assert model_dir.load(tmp_path / "model")[0].dtype == torch.float32
    assert model_dir.load(tmp_path / "model", dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    eager, _ = model_dir.load(tmp_path / "model", attention="eager", hidden_dropout_prob=0.3)
    assert eager(IDS, output_attentions=True).attentions[0].shape == (2, 4, 6, 6)
    assert eager.bert.embeddings.dropout.p == 0.3


def write_config(folder: Path, **changes: Any) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**tree, **changes}))


def test_refusals_name_the_file(vocabulary: Path, tmp_path: Path) -> None:
    def refused(match: str, source: Any = None) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            model_dir.load(source or folder)
        assert "\n" not in str(caught.value)

    folder = tmp_path / "model"
    refused("no such model folder", source=str(folder))
    refused(r"vocab.txt: this is a file", source=vocabulary / "vocab.txt")
    refused(r"corpus: no config.json", source=vocabulary)
    folder.mkdir()
    refused(r"model: no config.json")
    (folder / "config.json").write_text("{")
    refused(r"config.json: not JSON")
    (folder / "config.json").write_text("[]")
    refused(r"config.json: model_type is None")
    GPT2Config().save_pretrained(folder)
    refused(r"config.json: model_type is 'gpt2'; a bert or lert model")
    save_bert(folder)
    write_config(folder, position_embedding_type="relative_key")
    refused(r"config.json: position_embedding_type is 'relative_key'")
    write_config(folder, position_embedding_type="absolute", hidden_size="32")
    refused(r"config.json: .*hidden_size")
    write_config(folder, hidden_size=32, layer_attention_heads=[4])
    refused(r"config.json: layer_attention_heads has 1 numbers")
    write_config(folder, layer_attention_heads=None, intermediate_size=48)
    refused(
        r"model.safetensors: bert.encoder.layer.0.intermediate.dense.bias is \[64\] where "
        r"config.json makes it \[48\]"
    )
    write_config(folder, intermediate_size=64)
    assert not model_dir.load(folder)[1].random
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(r"model.safetensors: its weights cannot be read .* damaged")
    (folder / "model.safetensors").unlink()
    refused(r"model: a model folder without weights \(no model.safetensors")


def test_saving_replaces_whole_or_not_at_all(
    vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    model_dir.save(make_model(), vocabulary, folder, {"run": 1})
    (folder / "stale.txt").write_text("of the old model")
    card = (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text(f"{card}\nEdited.\n", "utf-8")
    for module, name in ((model_dir, "_add_code"), (model_card, "write_card")):
        with monkeypatch.context() as broken:
            broken.setattr(module, name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model_dir.save(make_model(), vocabulary, folder, {"run": 2})
    assert (folder / "README.md").read_text("utf-8").endswith("Edited.\n")
    assert json.loads((folder / "run.json").read_text()) == {"run": 1}
    model_dir.save(make_model(), vocabulary, folder, {"run": 2})
    assert (folder / "README.md").read_text("utf-8") == card
    assert json.loads((folder / "run.json").read_text()) == {"run": 2}
    assert not (folder / "stale.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "model"}


def test_weights_from_elsewhere(vocabulary: Path, tmp_path: Path) -> None:
    """A trainer whose model is in parts on many processes hands the whole weights over."""
    model, other = make_model(), make_model(initializer_range=1.0)
    whole = {name: tensor.detach().clone() for name, tensor in other.state_dict().items()}
    model_dir.save(model, vocabulary, tmp_path / "model", state_dict=whole)
    assert torch.equal(model_dir.load(tmp_path / "model")[0](IDS).logits, other(IDS).logits)
    # Once, though these copies are tied no more.
    assert "cls.predictions.decoder.weight" not in load_file(
        tmp_path / "model" / "model.safetensors"
    )
    for tied in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        del whole[tied]
    model_dir.save(model, vocabulary, tmp_path / "model", state_dict=whole)
    assert torch.equal(model_dir.load(tmp_path / "model")[0](IDS).logits, other(IDS).logits)


def test_what_could_not_be_loaded_is_not_saved(vocabulary: Path, tmp_path: Path) -> None:
    model = make_model()
    model.bert.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 10)
    with pytest.raises(AssertionError, match="intermediate"):
        model_dir.save(model, vocabulary, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("shape", [{}, UNEVEN])
def test_parameters_are_counted_without_allocating(shape: dict[str, Any]) -> None:
    model = make_model(**shape)
    assert model_dir.count_parameters(model.config) == sum(p.numel() for p in model.parameters())


def test_large_is_as_large_as_bert() -> None:
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    sizes |= {"vocab_size": 21128, "intermediate_size": 4096}
    with torch.device("meta"):
        bert = BertForMaskedLM(BertConfig(**sizes)).num_parameters()
    assert model_dir.count_parameters(LertConfig(**sizes)) == bert
    tagged = model_dir.count_parameters(LertConfig(**sizes, tag_sets=TAGS))
    assert tagged == bert + (3 + 2) * (1024 + 1)


def test_extra_weights_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "adapter.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO):
        assert model_dir.load(tmp_path)[1].unused == ("adapter.weight",)
    assert "left unread: adapter" in caplog.text


def test_weights_of_other_classes_go_along(vocabulary: Path, tmp_path: Path) -> None:
    """A pre-trained pooler: the model that is pre-trained has none, classifiers read it."""
    model, folder = make_model(), tmp_path / "model"
    with torch.device("meta"):
        hollow = LertForPreTraining(model.config)
    pooler = {
        "bert.pooler.dense.weight": torch.ones(32, 32),
        "bert.pooler.dense.bias": torch.full((32,), 2.0),
    }
    model_dir.save(hollow, vocabulary, folder, state_dict=model.state_dict(), extra=pooler)
    again, report = model_dir.load(folder)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert report.unused == tuple(sorted(pooler))
    classifier, report = model_dir.load(folder, LertForSequenceClassification)
    assert report.random == ("classifier.bias", "classifier.weight")
    assert torch.equal(classifier.bert.pooler.dense.bias, pooler["bert.pooler.dense.bias"])


@pytest.mark.parametrize("pooler", [True, False])
def test_an_encoder_is_saved_with_its_pooler_or_without(
    pooler: bool, vocabulary: Path, tmp_path: Path
) -> None:
    model = randomise(LertModel(LertConfig(**SIZES), add_pooling_layer=pooler))
    model_dir.save(model, vocabulary, tmp_path / "model")
    again, report = model_dir.load(tmp_path / "model", LertModel)
    assert torch.equal(again(IDS).last_hidden_state, model(IDS).last_hidden_state)
    assert bool(report.random) != pooler
