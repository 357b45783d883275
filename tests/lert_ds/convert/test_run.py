"""`lert-ds convert`: both ways from the command line, and every refusal in one sentence."""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lert_ds import cli
from lert_ds.architecture import SIZES
from lert_ds.convert.run import summary, table
from lert_ds.convert.source import Choice, open_source
from lert_ds.convert.to_folder import FolderPlan
from lert_ds.files import sha256_of

NAMES = ("lert_model.ckpt.index", "lert_model.ckpt.data-00000-of-00001", "vocab.txt")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the command: arguments, and the exit code that is expected → what it printed."""

    def run(*arguments: Any, code: int = 0) -> str:
        words = ["convert", *map(str, arguments)]
        if code:
            with pytest.raises(SystemExit, match=f"^{code}$"):
                cli.main(words)
        else:
            cli.main(words)
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def test_there_and_back_gives_the_same_files(
    store: Any, write_checkpoint: Any, tmp_path: Path, call: Any
) -> None:
    write_checkpoint(store, tmp_path / "tf")
    printed = call(tmp_path / "tf", tmp_path / "model")
    assert "50 variables moved; left out: none" in printed
    assert f"written: {tmp_path / 'model'}" in printed
    call(tmp_path / "model", tmp_path / "back")
    for name in NAMES:
        assert sha256_of(tmp_path / "back" / name) == sha256_of(tmp_path / "tf" / name), name
    before, after = (
        json.loads((tmp_path / folder / "lert_config.json").read_text("utf-8"))
        for folder in ("tf", "back")
    )
    before.pop("directionality")  # which no program reads
    assert before.items() <= after.items()


@pytest.mark.parametrize("size", [
    "small",
    pytest.param("base", marks=pytest.mark.slow),
    pytest.param("large", marks=pytest.mark.slow),
])  # fmt: skip
def test_there_and_back_at_the_released_sizes(
    write_checkpoint: Any, tiny_config: Any, tmp_path: Path, call: Any, size: str
) -> None:
    """Every byte, by TensorFlow itself; LERT-large takes 2.6 GB of disk twice."""
    pytest.importorskip("tensorflow", reason="needs pip install 'lert-ds[tf]'")
    from lert_ds.convert import tensorflow_checkpoint

    numbers = SIZES[size]
    says = {
        "vocab_size": 21128,
        "hidden_size": numbers["hidden_size"],
        "num_hidden_layers": numbers["layers"],
        "num_attention_heads": numbers["heads"],
        "intermediate_size": numbers["intermediate_size"],
        "max_position_embeddings": 512,
    }
    write_checkpoint(tensorflow_checkpoint, tmp_path / "tf", says=says, config=tiny_config(**says))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += map(chr, range(0x4E00, 0x4E00 + 21128 - len(pieces)))
    (tmp_path / "tf" / "vocab.txt").write_text("".join(f"{p}\n" for p in pieces), "utf-8")
    call(tmp_path / "tf", tmp_path / "model")
    call(tmp_path / "model", tmp_path / "back")
    for name in NAMES:
        assert sha256_of(tmp_path / "back" / name) == sha256_of(tmp_path / "tf" / name), name


def test_an_archive_and_a_rehearsal(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, call: Any
) -> None:
    more = {"global_step": np.array(3, np.float32)}
    write_checkpoint(stand_in, tmp_path / "tf", without=("ner",), more=more)
    with zipfile.ZipFile(tmp_path / "lert.zip", "w") as archive:
        for path in (tmp_path / "tf").iterdir():
            archive.write(path, f"lert/{path.name}")
    printed = call(tmp_path / "lert.zip", tmp_path / "model", "--dry-run")
    assert not (tmp_path / "model").exists()
    lines = [line.split() for line in printed.splitlines()]
    kernel = ["cls/predictions/output_pos_layer/kernel", "cls.predictions.output_pos.weight"]
    assert [*kernel, "[12,", "28]", "transposed"] in lines
    assert ["bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight", "[12]"] in lines
    assert ["global_step", "left", "out:", "state", "of", "the", "optimizer"] in lines
    assert ["ner", "not", "in", "the", "source"] in lines
    printed = call(tmp_path / "lert.zip", tmp_path / "model")
    assert "it has no ner; none is made, and the output lacks them" in printed
    assert "48 variables moved; left out: 1 (state of the optimizer)" in printed
    tree = json.loads((tmp_path / "model" / "run.json").read_text("utf-8"))
    assert tree["converted_from"] == str(tmp_path / "lert.zip")
    assert (tree["mapped"], tree["missing"]) == (48, ["ner"])
    assert tree["left_out"] == {"global_step": "state of the optimizer"}
    printed = call(tmp_path / "model", tmp_path / "back", "--dry-run")
    assert "48 variables moved" in printed


def test_the_table_has_a_line_for_everything(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path
) -> None:
    write_checkpoint(stand_in, tmp_path / "tf", without=("ner", "pooler"))
    with open_source(tmp_path / "tf", Choice()) as files:
        match = FolderPlan(files).match
    lines = table(match)
    assert len(lines) == len(match.entries) + len(match.left_out) + len(match.missing) + 1
    assert lines[-1] == summary(match) == "46 variables moved; left out: none"


def test_an_output_that_is_there_stays(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, call: Any, caplog: Any
) -> None:
    caplog.set_level(logging.CRITICAL)
    source, model = tmp_path / "tf", tmp_path / "model"
    write_checkpoint(stand_in, source)
    call(source, model)
    (model / "run.json").write_text("old", "utf-8")
    printed = call(source, model, code=2)
    assert (
        printed == f"error: {model}: it is there already; name another folder or say --overwrite\n"
    )
    assert (model / "run.json").read_text("utf-8") == "old"
    call(source, model, "--overwrite")
    assert (model / "run.json").read_text("utf-8") != "old"
    (model / "mine.txt").touch()
    printed = call(source, model, "--overwrite", code=2)
    assert "holds mine.txt, which no conversion has written" in printed
    assert (model / "mine.txt").exists()
    for output in (source, tmp_path):
        printed = call(source, output, "--overwrite", code=2)
        assert f"{output}: it is the source, or holds it" in printed
    (tmp_path / "file").touch()
    assert "it is a file; name a folder" in call(source, tmp_path / "file", code=2)


def test_mistakes_are_one_sentence(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, call: Any
) -> None:
    write_checkpoint(stand_in, tmp_path / "tf")
    write_checkpoint(stand_in, tmp_path / "tf", name="model.ckpt-7")
    output = tmp_path / "model"
    for arguments, told in (
        ([tmp_path / "tf"], "several checkpoints (lert_model.ckpt, model.ckpt-7)"),
        ([tmp_path / "nowhere" / "x.zip"], "there is no such model folder"),
        ([tmp_path, "--checkpoint", "model.ckpt-8"], "no checkpoint model.ckpt-8"),
    ):
        printed = call(*arguments[:1], output, *arguments[1:], code=2)
        assert told in printed
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
    call(tmp_path / "tf", output, "--checkpoint", "model.ckpt-7")
    printed = call(output, tmp_path / "back", "--config", "c.json", code=2)
    assert "--config c.json: " in printed
    assert "holds no TensorFlow checkpoint" in printed


def test_a_failure_leaves_no_half_output(
    stand_in: Any, write_checkpoint: Any, tmp_path: Path, call: Any, monkeypatch: Any
) -> None:
    write_checkpoint(stand_in, tmp_path / "tf")
    call(tmp_path / "tf", tmp_path / "model")

    def fail(*arguments: Any) -> None:
        raise RuntimeError("the disk is on fire")

    from lert_ds.convert import tensorflow_checkpoint

    monkeypatch.setattr(tensorflow_checkpoint, "write", fail)
    assert "on fire" in call(tmp_path / "model", tmp_path / "back", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tf"]
