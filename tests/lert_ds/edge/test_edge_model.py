"""Edge folders: what they compute, and those that are refused. No PyTorch is needed for them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lert_ds.edge.edge_model import EdgeModel
from lert_ds.errors import ModelError, UserError
from lert_ds.tagging import Words

TEXTS = ["今[MASK]天气很好。", "明天[MASK]", "[MASK]见，[MASK]见"]
PLACES = [2, 3, 1, 4]
MASK_ID = 4
TASKS = ("pos", "ner")


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("masked_positions", [False, True])
def test_says_what_the_graph_computes(
    tmp_path: Path, write_edge: Any, edge_tables: Any, masked_positions: bool
) -> None:
    folder = write_edge(tmp_path / "edge", masked_positions=masked_positions)
    model = EdgeModel(folder, "fp32", threads=1)
    assert model.tasks == TASKS
    predictions = model.fill(TEXTS, top_k=4)
    assert [prediction.text for prediction in predictions] == TEXTS
    masks = [mask for prediction in predictions for mask in prediction.masks]
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    for mask, place in zip(masks, PLACES, strict=True):
        scale = edge_tables["places"][place]
        shares = softmax(edge_tables["logits"][MASK_ID] * scale)
        best = np.argsort(-shares)[:4]
        assert [tokenizer[piece.name] for piece in mask.pieces] == best.tolist()
        found = [piece.probability for piece in mask.pieces]
        np.testing.assert_allclose(found, shares[best], rtol=1e-5)
        for task in TASKS:
            shares = softmax(edge_tables[f"{task}_logits"][MASK_ID] * scale)
            tag = mask.tags[task]
            assert tag.name == model.config["tag_sets"][task][shares.argmax()]
            assert tag.probability == pytest.approx(shares.max(), rel=1e-5)


@pytest.mark.parametrize("masked_positions", [False, True])
def test_tags_are_what_fill_says_of_masks_typed_by_hand(
    tmp_path: Path, write_edge: Any, edge_tables: Any, masked_positions: bool
) -> None:
    folder = write_edge(tmp_path / "edge", masked_positions=masked_positions)
    model = EdgeModel(folder, "fp32", threads=1)
    sentences = [
        Words("今天天气", ["今天", "天气"]),
        Words("明天再见。", ["明", "天", "再见", "。"]),
    ]
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    for sentence in model.tagger().tag(sentences, top_k=9):
        place = 1
        for word in sentence.words:
            typed = "[MASK]" * len(word.word)
            text = sentence.text[: place - 1] + typed + sentence.text[place - 1 + len(word.word) :]
            (filled,) = model.fill([text], top_k=1000)
            for piece, mask in zip(word.pieces, filled.masks, strict=True):
                (found,) = [other for other in mask.pieces if other.name == piece.name]
                assert piece.probability == pytest.approx(found.probability, rel=1e-5)
            assert [piece.name for piece in word.pieces] == list(word.word)
            for task in TASKS:
                rows = [
                    softmax(edge_tables[f"{task}_logits"][vocabulary["[MASK]"]] * scale)
                    for scale in edge_tables["places"][place : place + len(word.word)]
                ]
                shares = dict(zip(model.config["tag_sets"][task], np.mean(rows, 0), strict=True))
                found = {tag.name: tag.probability for tag in word.tags[task]}
                assert found == pytest.approx(shares, rel=1e-5)
            place += len(word.word)


def test_a_graph_without_heads_tags_nothing(tmp_path: Path, write_edge: Any) -> None:
    model = EdgeModel(write_edge(tmp_path / "edge", outputs=("logits",)))
    with pytest.raises(ModelError, match="its graph has no linguistic heads to tag words with"):
        model.tagger()


def test_more_candidates_than_pieces_and_rows_beyond_them(tmp_path: Path, write_edge: Any) -> None:
    folder = write_edge(tmp_path / "edge")
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text("utf-8"))
    del tree["model"]["vocab"]["go"]  # the graph's last row names no piece
    path.write_text(json.dumps(tree), "utf-8")
    (prediction,) = EdgeModel(folder).fill(["[MASK]"], top_k=1000)
    pieces = [piece.name for piece in prediction.masks[0].pieces]
    assert sorted(pieces) == sorted(tree["model"]["vocab"])
    assert sum(piece.probability for piece in prediction.masks[0].pieces) == pytest.approx(1)


def test_graphs_by_name(tmp_path: Path, write_edge: Any) -> None:
    both = write_edge(tmp_path / "both")
    assert EdgeModel(both).graph == "int8"
    assert EdgeModel(both, "fp32").graph == "fp32"
    one = write_edge(tmp_path / "one", graphs=("fp32",))
    assert EdgeModel(one).graph == "fp32"
    with pytest.raises(ModelError, match=r"no int8 graph \(onnx/model_quantized\.onnx\); say --gr"):
        EdgeModel(one, "int8")
    with pytest.raises(ModelError, match="no graph for ONNX Runtime in it"):
        EdgeModel(write_edge(tmp_path / "none", graphs=()))


def test_special_tokens_are_spelt_as_the_folder_says(tmp_path: Path, write_edge: Any) -> None:
    folder = write_edge(tmp_path / "edge")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"mask_token": {"content": "好"}, "cls_token": "今"}), "utf-8")
    (prediction,) = EdgeModel(folder).fill(["今好"])
    assert len(prediction.masks) == 1
    settings.write_text(json.dumps({"mask_token": "<mask>"}), "utf-8")
    with pytest.raises(ModelError, match="there is no <mask> in it"):
        EdgeModel(folder).fill(["今<mask>"])


def test_what_is_refused(tmp_path: Path, write_edge: Any) -> None:
    wide = write_edge(tmp_path / "wide", vocab_size=18)
    with pytest.raises(ModelError, match="vocab_size makes logits 18 wide"):
        EdgeModel(wide)
    tagger = write_edge(
        tmp_path / "tagger",
        outputs=("logits",),
        architectures=["BertForTokenClassification"],
        id2label={str(number): "x" for number in range(17)},
    )
    model = EdgeModel(tagger)
    assert not model.fills_masks
    with pytest.raises(ModelError, match="BertForTokenClassification, which fills no"):
        model.fill(["[MASK]"])
    long = EdgeModel(write_edge(tmp_path / "long", max_position_embeddings=99))
    with pytest.raises(ModelError, match="other max_position_embeddings"):
        long.fill(["[MASK]" * 30])
    model = EdgeModel(write_edge(tmp_path / "edge"))
    for texts, top_k, message in (
        (["今"], 5, "there is no"),
        (["[MASK]" * 15], 5, "the model takes 16"),
        (["[MASK]"], 0, "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            model.fill(texts, top_k)


def test_a_tokenizer_of_another_model(tmp_path: Path, write_edge: Any) -> None:
    folder = write_edge(tmp_path / "edge")
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text("utf-8"))
    tree["model"]["vocab"]["多"] = 17
    path.write_text(json.dumps(tree), "utf-8")
    with pytest.raises(ModelError, match="tokenizer has 18 pieces, its graph scores 17"):
        EdgeModel(folder).fill(["[MASK]"])
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: it cannot be read"):
        EdgeModel(folder).fill(["[MASK]"])
    path.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        EdgeModel(folder).fill(["[MASK]"])


def test_three_libraries_are_enough(tmp_path: Path, write_edge: Any) -> None:
    folder = write_edge(tmp_path / "edge")
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'deepspeed', 'pydantic', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "from lert_ds.edge.edge_model import EdgeModel\n"
        "from lert_ds.split_words import make_splitter\n"
        f"model = EdgeModel({str(folder)!r})\n"
        "assert model.tagger().tag(make_splitter('space')(['今 天']))[0].words[1].tags\n"
        "assert model.tagger().tag(make_splitter('character')(['今天']))[0].words[1].tags\n"
        "print(model.fill(['今[MASK]'])[0].filled)\n"
        "print(*{name.split('.')[0] for name in sys.modules if sys.modules[name]})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    filled, loaded = done.stdout.splitlines()
    assert filled == EdgeModel(folder).fill(["今[MASK]"])[0].filled
    foreign = set(loaded.split()) - sys.stdlib_module_names - {"lert_ds", "__main__"}
    named = {name for name in foreign if not name.startswith("_")}
    assert named == {"numpy", "onnxruntime", "tokenizers"}
