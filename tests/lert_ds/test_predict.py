"""The command as a user types it, on model folders and on edge folders."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig, BertForTokenClassification

from lert_ds import cli, tagged, tokenizer_files
from lert_ds.edge.edge_model import EdgeModel
from lert_ds.predictions import columns_of, show
from lert_ds.tagging import Words

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。", "##ing", "go"]
TAGS = {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"]}
SIZES = {
    "vocab_size": 17,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
TEXTS = ["今[MASK]天气很好。", "明天[MASK]", "[MASK]见，[MASK]见"]

Run = Callable[[Sequence[str]], tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, write_filler: Any) -> Path:
    write_filler(tmp_path / "model")
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
    ends = [columns_of(line[: line.index("pos ")]) for line in lines[5:]]
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


def test_without_linguistic_heads(tmp_path: Path, run: Run, write_filler: Any) -> None:
    write_filler(tmp_path / "plain", tag_sets=None)
    code, out, _ = run([str(tmp_path / "plain"), TEXTS[0], "--json"])
    assert code == 0
    assert json.loads(out)["masks"][0]["tags"] == {}


def test_heads_without_weights_say_nothing(tmp_path: Path, run: Run, write_filler: Any) -> None:
    write_filler(tmp_path / "model", tag_sets=None)
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
        (["今天气很好"], "or say --tag to tag its words"),
        (["今[MASK]", "--tag"], "there is a [MASK] in it"),
        (["今", "--tag", "--top-k", "0"], "--top-k 0: at least 1"),
        (["今", "--tag", "--words", "none"], "--words none: there is no such way"),
        (["今[MASK]", "--words", "space"], "--words space: only with --tag"),
        (["今", "--gold", "a.conllu"], "--gold a.conllu: its sentences are tagged, and no other"),
        (["--gold", "a.conllu", "--words", "space"], "a.conllu has words of its own"),
        (["--gold", "none.conllu"], "none.conllu: No such file"),
        ([], "TEXT: there is none; give one"),
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


def test_an_edge_folder_runs_its_int8_graph_or_the_one_that_is_named(
    tmp_path: Path, run: Run, write_edge: Any
) -> None:
    folder = write_edge(tmp_path / "edge")
    for graph, options in (("int8", []), ("int8", ["--graph", "int8"]), ("fp32", ["--graph=fp32"])):
        code, out, _ = run([str(folder), *TEXTS, "--json", *options])
        assert code == 0
        wanted = EdgeModel(folder, graph).fill(TEXTS)
        assert out.splitlines() == [show(prediction, as_json=True) for prediction in wanted]
    assert run([str(folder), TEXTS[0], "--graph=fp32"]) != run([str(folder), TEXTS[0]])


def test_an_edge_folder_runs_without_its_libraries_nowhere(
    tmp_path: Path, run: Run, write_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_edge(tmp_path / "edge")
    for name in ("lert_ds.edge.edge_model", "lert_ds.edge.graph", "onnxruntime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run([str(folder), TEXTS[0]])
    assert (code, "pip install 'lert-ds[export]'" in err) == (2, True)


def test_tags_are_printed_a_table_a_text(folder: Path, run: Run) -> None:
    code, out, _ = run(
        [str(folder), "今天 天气", "好", "--tag", "--words", "space", "--top-k", "2"]
    )
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["今天", "今天", "天气", "好", "好"]
    assert lines[1].count(" %") == 4
    assert [line.index("ner ") for line in lines[1:3]] == [lines[1].index("ner ")] * 2


def test_tags_as_json_of_words_that_jieba_finds(folder: Path, run: Run) -> None:
    code, out, _ = run([str(folder), "今天天气很好", "", "--tag", "--json"])
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert "".join(word["word"] for word in first["words"]) == "今天天气很好"
    assert len(first["words"]) < 6
    for word in first["words"]:
        assert [piece["name"] for piece in word["pieces"]] == list(word["word"])
        assert {task: len(tags) for task, tags in word["tags"].items()} == {"pos": 1, "ner": 1}
    assert second["words"] == []


def test_gold_is_compared(folder: Path, run: Run, tmp_path: Path) -> None:
    line = {"words": ["今天", "好"], "pos": ["n", "x"], "ner": ["O", None]}
    gold = tmp_path / "gold.jsonl"
    gold.write_text(f"{json.dumps(line)}\n" * 300, "utf-8")  # more than are tagged at once
    code, out, err = run([str(folder), "--gold", str(gold), "--json"])
    assert code == 0
    tasks = json.loads(out)["tasks"]
    assert tasks["pos"]["words"] == tasks["ner"]["words"] == 300
    assert tasks["pos"]["left_out"] == {"x": 300}
    assert "tagged: 300 of 300 sentences" in err
    _, alone, _ = run([str(folder), "今天 好", "--tag", "--words=space", "--json"])
    best = json.loads(alone)["words"][0]["tags"]["pos"][0]["name"]
    assert tasks["pos"]["accuracy"] == float(best == "n")
    code, out, _ = run([str(folder), "--gold", str(gold)])
    assert [row.split()[0] for row in out.splitlines()] == ["300", "task", "pos", "ner"]


def test_an_edge_folder_tags_too(tmp_path: Path, run: Run, write_edge: Any) -> None:
    folder = write_edge(tmp_path / "edge")
    code, out, _ = run([str(folder), "今天 好", "--tag", "--words", "space", "--graph", "fp32"])
    assert code == 0
    wanted = EdgeModel(folder, "fp32").tagger().tag([Words("今天 好", ["今天", "好"])])
    assert out.rstrip("\n") == tagged.show(wanted[0], as_json=False)


def test_without_heads_nothing_is_tagged(tmp_path: Path, run: Run, write_filler: Any) -> None:
    write_filler(tmp_path / "plain", tag_sets=None)
    code, out, err = run([str(tmp_path / "plain"), "今", "--tag"])
    assert (code, out) == (2, "")
    assert "plain: it has no linguistic heads that have learnt to tag words" in err


@pytest.mark.parametrize("options", [["--device", "cuda"], ["--graph", "fp32"]])
def test_an_option_of_the_other_kind_of_folder(
    options: list[str], folder: Path, tmp_path: Path, run: Run, write_edge: Any
) -> None:
    chosen = folder if options[0] == "--graph" else write_edge(tmp_path / "edge")
    code, out, err = run([str(chosen), TEXTS[0], *options])
    assert (code, out) == (2, "")
    assert f"{options[0]} {options[1]}: " in err
    assert f"leave {options[0]} out" in err
