"""Filling [MASK]: the API, and the command as a user types it."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from lert_ds import cli, model_dir, predict, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import UserError
from lert_ds.modeling_lert import LertForPreTraining

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。", "##ing", "go"]
TAGS = {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"]}
SIZES = {
    "vocab_size": len(PIECES),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
TEXTS = ["今[MASK]天气很好。", "明天[MASK]", "[MASK]见，[MASK]见", "好"]

Run = Callable[[Sequence[str]], tuple[int, str, str]]


def make_model(folder: Path, tag_sets: Any = TAGS) -> LertForPreTraining:
    torch.manual_seed(0)
    model = LertForPreTraining(LertConfig(**SIZES, tag_sets=tag_sets))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    vocabulary = folder.parent / "vocabulary"
    vocabulary.mkdir(exist_ok=True)
    (vocabulary / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    model_dir.save(model, vocabulary, folder)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(arguments: Sequence[str]) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(["predict", *arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def close(left: predict.Prediction, right: predict.Prediction) -> None:
    assert (left.text, left.filled) == (right.text, right.filled)
    for ours, theirs in zip(left.masks, right.masks, strict=True):
        for one, other in zip(
            [*ours.pieces, *ours.tags.values()],
            [*theirs.pieces, *theirs.tags.values()],
            strict=True,
        ):
            assert one.name == other.name
            assert one.probability == pytest.approx(other.probability, abs=1e-6)


def test_a_batch_says_what_each_text_alone_says(folder: Path) -> None:
    model, tokenizer = predict.load(str(folder))
    together = predict.fill(model, tokenizer, TEXTS[:3])
    assert [len(prediction.masks) for prediction in together] == [1, 1, 2]
    for text, prediction in zip(TEXTS[:3], together, strict=True):
        close(prediction, predict.fill(model, tokenizer, [text])[0])


def test_says_what_the_model_computes(folder: Path) -> None:
    model, tokenizer = predict.load(str(folder))
    (prediction,) = predict.fill(model, tokenizer, ["今[MASK]气"], top_k=3)
    logits = model(torch.tensor([[2, 5, 4, 7, 3]]))
    shares = logits.logits[0, 2].softmax(-1)
    best = shares.argsort(descending=True)[:3]
    (mask,) = prediction.masks
    assert [piece.name for piece in mask.pieces] == [PIECES[place] for place in best]
    assert [piece.probability for piece in mask.pieces] == pytest.approx(shares[best].tolist())
    for task, tags in TAGS.items():
        shares = logits.tag_logits[task][0, 2].softmax(-1)
        assert mask.tags[task].name == tags[int(shares.argmax())]
        assert mask.tags[task].probability == pytest.approx(float(shares.max().detach()))


def test_fills_each_place(folder: Path) -> None:
    model, tokenizer = predict.load(str(folder))
    model.cls.predictions.bias.data[PIECES.index("##ing")] = 1e4
    (prediction,) = predict.fill(model, tokenizer, ["go[MASK]，[MASK]"])
    assert prediction.filled == "going，ing"
    assert prediction.masks[1].pieces[0] == predict.Candidate("##ing", 1.0)


def test_more_candidates_than_pieces(folder: Path) -> None:
    model, tokenizer = predict.load(str(folder))
    (prediction,) = predict.fill(model, tokenizer, ["[MASK]"], top_k=1000)
    pieces = [piece.name for piece in prediction.masks[0].pieces]
    assert sorted(pieces) == sorted(PIECES)


def test_command_prints_a_table(folder: Path, run: Run) -> None:
    code, out, _ = run([str(folder), *TEXTS[:3], "--top-k", "2"])
    assert code == 0
    lines = out.splitlines()
    assert [line.startswith("  [MASK] ") for line in lines] == [
        *[False, True],
        *[False, True],
        *[False, True, True],
    ]
    assert all(line.count(" %") == 4 for line in lines if line.startswith("  "))
    assert "pos " in lines[1]
    assert "ner " in lines[1]
    ends = [predict._width(line[: line.index("pos ")]) for line in lines[5:]]
    assert ends[0] == ends[1]  # columns stand below each other, Han characters or not


def test_command_prints_json(folder: Path, run: Run) -> None:
    code, out, _ = run([str(folder), TEXTS[0], TEXTS[2], "--json", "--top-k", "1"])
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert first["text"] == TEXTS[0]
    assert len(second["masks"]) == 2
    (piece,) = first["masks"][0]["pieces"]
    assert piece.keys() == {"name", "probability"}
    assert first["masks"][0]["tags"].keys() == TAGS.keys()


def test_standard_input(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    texts = [f"今[MASK]{PIECES[5 + k % 9]}" for k in range(40)]  # more than a batch
    give(b"\xef\xbb\xbf" + "\r\n\r\n".join(texts).encode() + b"\n")
    code, out, _ = run([str(folder), "-", "--json"])
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == texts
    give(b" \n")
    code, _, err = run([str(folder), "-"])
    assert (code, "there is no text" in err) == (2, True)
    give("今[MASK]".encode("gb18030"))
    code, _, err = run([str(folder), "-"])
    assert (code, "not UTF-8 at byte 0" in err) == (2, True)


def test_without_linguistic_heads(tmp_path: Path, run: Run) -> None:
    make_model(tmp_path / "plain", tag_sets=None)
    code, out, _ = run([str(tmp_path / "plain"), TEXTS[0], "--json"])
    assert code == 0
    assert json.loads(out)["masks"][0]["tags"] == {}


def test_heads_without_weights_say_nothing(tmp_path: Path, run: Run) -> None:
    make_model(tmp_path / "model", tag_sets=None)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tag_sets": TAGS}))
    code, out, _ = run([str(tmp_path / "model"), TEXTS[0], "--json"])
    assert code == 0
    assert json.loads(out)["masks"][0]["tags"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["今天气很好"], "'今天气很好': there is no [MASK] in it; put one"),
        (["今[mask]"], "there is no [MASK]"),
        (["[MASK]" + "好" * 14], "17 tokens with [CLS] and [SEP], the model takes 16"),
        (["[MASK]", "--top-k", "0"], "--top-k 0: at least 1"),
        (["[MASK]", "--device", "gpu"], "--device gpu: not on this machine"),
        (["[MASK]", "--device", "cuda:77"], "--device cuda:77: not on this machine"),
    ],
)
def test_bad_input(arguments: list[str], message: str, folder: Path, run: Run) -> None:
    code, out, err = run([str(folder), *arguments])
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("error:") == 1
    assert "Traceback" not in err


def test_model_without_mlm_head(folder: Path, tmp_path: Path, run: Run) -> None:
    BertForTokenClassification(BertConfig(**SIZES)).save_pretrained(tmp_path / "tagger")
    code, _, err = run([str(tmp_path / "tagger"), TEXTS[0]])
    assert code == 2
    assert "it has no MLM head to fill [MASK] with" in err
    code, _, err = run([str(tmp_path / "none"), TEXTS[0]])
    assert (code, "there is no such model folder" in err) == (2, True)


def test_tokenizer_must_be_the_models(folder: Path, run: Run) -> None:
    pieces = [*PIECES, "多"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    (folder / "tokenizer.json").unlink()
    assert len(tokenizer_files.load(folder)) == 18
    code, _, err = run([str(folder), TEXTS[0]])
    assert code == 2
    assert "its tokenizer has 18 pieces, its model embeds 17" in err


def test_one_bad_text_of_many_is_named(folder: Path) -> None:
    model, tokenizer = predict.load(str(folder))
    with pytest.raises(UserError, match="'好': there is no"):
        predict.fill(model, tokenizer, TEXTS)
