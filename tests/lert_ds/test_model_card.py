"""The whole card: its front matter, what must not get into it, and folders that it is made from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lert_ds import model_card, model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ModelError
from lert_ds.model_card import Facts
from lert_ds.modeling_lert import AUTO_CLASSES, LertForPreTraining

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "今", "天"]
CONFIG = {
    "architectures": ["LertForPreTraining"],
    "auto_map": {"AutoModelForPreTraining": "modeling_lert.LertForPreTraining"},
    "tag_sets": {"pos": ["n", "v"]},
    "num_hidden_layers": 2,
}
RUN: dict[str, Any] = {
    "steps": 10,
    "valid": {"mlm/loss": 2.0, "mlm/accuracy": 0.5, "pos/macro_f1": 0.25, "mlm/perplexity": 7.4},
    "config": {
        "output": "/home/somebody/secret-project/runs/out",
        "corpus": ["/home/somebody/corpora/wiki"],
        "teacher": ["hfl/chinese-lert-base", "/home/somebody/runs/big/model"],
        "student": {"model": None},
        "train": {"batch_size": 8},
        "deepspeed": "/home/somebody/ds.json",
        "tracking": {"project": "hf_0123456789abcdef0123"},
    },
    "sources": {"hub_models": ["hfl/chinese-lert-base"]},
}


def front_matter(text: str) -> dict[str, Any]:
    _, matter, rest = text.split("---\n", 2)
    assert rest.startswith("\n# ")
    tree: dict[str, Any] = yaml.safe_load(matter)
    theirs = ModelCard(text).data  # as the hub's own library reads it
    assert (theirs.language, theirs.pipeline_tag) == (tree["language"], tree["pipeline_tag"])
    return tree


def test_front_matter_is_what_the_hub_reads() -> None:
    text = model_card.model_card(Facts(CONFIG, RUN, "small"))
    tree = front_matter(text)
    assert tree["language"] == "zh"
    assert tree["library_name"] == "transformers"
    assert tree["pipeline_tag"] == "fill-mask"
    assert tree["tags"] == ["lert", "bert", "chinese", "distilled"]
    assert tree["base_model"] == ["hfl/chinese-lert-base"]
    assert "license" not in tree
    (index,) = tree["model-index"]
    assert index["name"] == "small"
    found = {
        (result["task"]["type"], metric["type"], metric["name"]): metric["value"]
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert found == {
        ("fill-mask", "accuracy", "mlm/accuracy"): 0.5,
        ("fill-mask", "perplexity", "mlm/perplexity"): 7.4,
        ("token-classification", "f1", "pos/macro_f1"): 0.25,
    }
    (dataset,) = {json.dumps(result["dataset"]) for result in index["results"]}
    assert json.loads(dataset) == {"name": "wiki (held out)", "type": "wiki-held-out"}


def test_nothing_of_the_machine_and_no_secret_gets_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "open-sesame-1234")
    run = {**RUN, "versions": {"open-sesame-1234": "hf_0123456789abcdef0123"}}
    text = model_card.model_card(Facts(CONFIG, run, "small"))
    for private in ("somebody", "secret-project", "/home", "sesame", "0123456789abcdef"):
        assert private not in text, private
    assert "`big`" in text
    assert "`hfl/chinese-lert-base`" in text


def test_an_edit_is_known() -> None:
    text = model_card.model_card(Facts(CONFIG, RUN, "small"))
    assert not model_card.is_edited(text)
    assert model_card.model_card(Facts(CONFIG, RUN, "small")) == text
    for edited in (
        text.replace("language: zh", "language: zh\nlicense: apache-2.0"),
        text + "More.\n",
        text.replace("\n<!-- lert-ds", "More.\n\n<!-- lert-ds"),
        "# Mine\n",
        "",
    ):
        assert model_card.is_edited(edited)


@pytest.mark.parametrize(
    ("auto", "pipeline"),
    [
        ("AutoModel", "feature-extraction"),
        ("AutoModelForPreTraining", "fill-mask"),
        ("AutoModelForMaskedLM", "fill-mask"),
        ("AutoModelForSequenceClassification", "text-classification"),
        ("AutoModelForTokenClassification", "token-classification"),
        ("AutoModelForQuestionAnswering", "question-answering"),
    ],
)
def test_use_by_class(auto: str, pipeline: str) -> None:
    config = {"architectures": [AUTO_CLASSES[auto].__name__]}
    assert model_card.pipeline_of(config) == pipeline
    run = {"config": {"task": {"name": "cmrc2018"}}, "valid": {"em": 0.5, "f1": 0.7, "loss": 1.0}}
    tree = front_matter(model_card.model_card(Facts(config, run, "x")))
    assert tree["pipeline_tag"] == pipeline
    (index,) = tree["model-index"]
    (result,) = index["results"]
    assert result["task"]["type"] == pipeline
    assert [metric["type"] for metric in result["metrics"]] == ["exact_match", "f1"]
    assert len(AUTO_CLASSES) == 6


def test_without_a_run_it_is_shorter() -> None:
    text = model_card.model_card(Facts(CONFIG, None, "x"))
    tree = front_matter(text)
    assert "model-index" not in tree
    assert "base_model" not in tree
    assert "## Training" not in text
    assert "## Cite" in text
    assert "does not record" in text


def test_a_name_with_signs_of_markdown_and_yaml() -> None:
    for name in ("a: b", "- x", "'\"", "<b>x</b>", "[l](u)", "#!", "---"):
        run = {**RUN, "config": {**RUN["config"], "corpus": [f"c/{name}"]}}
        text = model_card.model_card(Facts(CONFIG, run, name))
        tree = front_matter(text)
        assert tree["model-index"][0]["name"] == name
        assert [line for line in text.splitlines() if line.startswith("# ")]
        assert "<b>x" not in text.split("---\n", 2)[2]


def test_a_saved_folder_has_its_card(tmp_path: Path, tiny_corpus: Path) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LertConfig(**sizes, vocab_size=7, intermediate_size=6, tag_sets=CONFIG["tag_sets"])
    model = LertForPreTraining(config)
    folder = tmp_path / "runs" / "tiny-lert" / "model"
    told = {"corpus": [str(tiny_corpus)], "lip": {}, "init_from": None}
    model_dir.save(model, vocabulary, folder, {"config": told, "valid": {"mlm/accuracy": 0.5}})
    text = (folder / "README.md").read_text("utf-8")
    assert "# tiny-lert\n" in text
    assert f"| parameters | {model_dir.count_parameters(config):,} |" in text
    assert "| `tiny` | 64 | 32 |" in text
    assert str(tmp_path) not in text
    assert not model_card.is_edited(text)
    run = json.loads((folder / "run.json").read_text("utf-8"))
    assert run["sources"]["corpora"][0]["name"] == "tiny"
    assert model_card.model_card(model_card.read_facts(folder)) == text
    # Once the corpus is gone, run.json still says what it was.
    run["config"]["corpus"] = ["/gone/tiny"]
    (folder / "run.json").write_text(json.dumps(run), "utf-8")
    assert "| `tiny` | 64 | 32 |" in model_card.model_card(model_card.read_facts(folder))


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config.json, so it is no model folder"):
        model_card.read_facts(tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    (tmp_path / "run.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"run.json: not JSON"):
        model_card.read_facts(tmp_path)
    (tmp_path / "run.json").write_text("[]", "utf-8")
    for content in (b"", b"\x05\0\0\0\0\0\0\0", b"\x02\0\0\0\0\0\0\0{]", b"\xff" * 9):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert model_card.read_facts(tmp_path).parameters is None
    model_card.write_card(tmp_path, "x")
    assert "# x\n" in (tmp_path / "README.md").read_text("utf-8")


def test_a_card_loads_no_model() -> None:
    program = "import sys, lert_ds.model_card; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
