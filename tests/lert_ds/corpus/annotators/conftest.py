"""Small LTP models, built on the spot: a neural one of random weights, and trained perceptrons."""

import json
from pathlib import Path

import pytest
import torch

from lert_ds.labels import LTP_TAGS

POS = list(LTP_TAGS["pos"])
NER = ["O", *(f"{place}-{kind}" for kind in ("Nh", "Ni", "Ns") for place in "BIES")]
DEP = [*LTP_TAGS["dep"][:13], "IS", "IOB"]
HIDDEN = 32


def _token_head(labels: int) -> dict:
    return {
        "_ltp_target_": "ltp_core.models.components.token.MLPTokenClassifier",
        "input_size": HIDDEN,
        "num_labels": labels,
        "dropout": 0.1,
    }


def neural_config(vocabulary: int) -> dict:
    models = "ltp_core.models"
    backbone = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
    }
    graph = {
        "_ltp_target_": f"{models}.components.graph.BiaffineClassifier",
        "input_size": HIDDEN,
        "num_labels": len(DEP),
        "dropout": 0.1,
        "arc_hidden_size": 16,
        "rel_hidden_size": 16,
    }
    words = {"_ltp_target_": f"{models}.processor.WordsOnly"}
    return {
        "nerual": True,
        "model": {
            "_ltp_target_": f"{models}.ltp_model.LTPModule",
            "backbone": {
                "_ltp_target_": f"{models}.utils.load_transformers",
                "config": backbone,
            },
            "processor": {
                "cws": {"_ltp_target_": f"{models}.processor.TokenOnly"},
                "pos": words,
                "ner": words,
                "dep": {"_ltp_target_": f"{models}.processor.WordsWithHead"},
            },
            "heads": {
                "cws": _token_head(2),
                "pos": _token_head(len(POS)),
                "ner": _token_head(len(NER)),
                "dep": graph,
            },
        },
        "vocabs": {"cws": ["I-W", "B-W"], "pos": POS, "ner": NER, "dep": DEP},
    }


def _vocabulary() -> list[str]:
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    han = [chr(code) for code in range(0x4E00, 0x9FA6)]
    marks = [*"，。！？；：、（）《》“”‘’—…·.,!?;:'\"()[]{}<>@#$%&*-_=+/\\|~％"]
    jamo = [f"##{chr(code)}" for code in range(0x1100, 0x11C3)]
    hangul = [chr(code) for code in range(0x1100, 0x1113)]
    pieces = [f"##{letter}" for letter in letters]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *han, *marks, *letters, *pieces, *hangul, *jamo, "hello", "world"]


@pytest.fixture(scope="session")
def neural_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A neural LTP with the four tasks: one layer, random weights, LTP's tags and `IS`."""
    pytest.importorskip("ltp")
    from ltp_core.models.utils import instantiate

    folder = tmp_path_factory.mktemp("ltp") / "neural"
    folder.mkdir()
    vocabulary = _vocabulary()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    config = neural_config(len(vocabulary))
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    torch.manual_seed(0)
    model = instantiate(config["model"])
    with torch.no_grad():  # larger heads, so that tags vary and a word is about two characters
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "task_heads" in name:
                parameter.mul_(6)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def perceptron_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A legacy LTP trained on a few sentences that it then knows by heart."""
    pytest.importorskip("ltp")
    from ltp_extension.perceptron import Algorithm, CWSTrainer, NERTrainer, POSTrainer

    folder = tmp_path_factory.mktemp("ltp") / "legacy"
    folder.mkdir()
    # A tag outside the labels given to a trainer aborts the process.
    sentences = [
        "他/r/O 在/p/O 北京/ns/S-Ns 工作/v/O 。/wp/O",
        "小明/nh/S-Nh 去/v/O 上海/ns/S-Ns 了/u/O 。/wp/O",
        "我/r/O 喜欢/v/O 苹果/n/O 和/c/O 香蕉/n/O 。/wp/O",
        "北京/ns/B-Ni 大学/n/E-Ni 很/d/O 大/a/O 。/wp/O",
    ] * 8
    rows = [[word.split("/") for word in sentence.split(" ")] for sentence in sentences]
    files = {
        "cws": [" ".join(word for word, _, _ in row) for row in rows],
        "pos": [" ".join(f"{word}/{pos}" for word, pos, _ in row) for row in rows],
        "ner": sentences,
    }
    trainers = {"cws": CWSTrainer(), "pos": POSTrainer(POS), "ner": NERTrainer(NER)}
    for task, trainer in trainers.items():
        data = folder / f"{task}.txt"
        data.write_text("\n".join(files[task]) + "\n", "utf-8")
        trainer.epoch = 10
        trainer.shuffle = False  # at random otherwise
        trainer.algorithm = Algorithm("AP", 1)
        trainer.load_train_data(str(data))
        trainer.load_eval_data(str(data))
        trainer.train().save(str(folder / f"{task}_model.bin"))
    tasks = {task: f"{task}_model.bin" for task in trainers}
    (folder / "config.json").write_text(json.dumps({"nerual": False, "tasks": tasks}), "utf-8")
    return folder
