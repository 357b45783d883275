"""`prepare --show`: instances that a person can read."""

import json
from pathlib import Path

import numpy as np
import pytest

from lert_ds.data.shards import Manifest, write_manifest, write_shard
from lert_ds.errors import ConfigError, CorpusError
from lert_ds.labels import LTP_TAGS
from lert_ds.show import show

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "我", "爱", "北", "京", "git", "##hub"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    ids = np.array([[2, 5, 6, 7, 8, 3, 9, 10, 3, 0], [2, 1, 3, 0, 0, 0, 0, 0, 0, 0]])
    starts = np.array([[0, 1, 1, 1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=bool)
    pos = np.full((2, 10), 255)
    r, v, ns = (LTP_TAGS["pos"].index(tag) for tag in ("r", "v", "ns"))
    pos[0, 1:5] = r, v, ns, ns
    nothing = np.full((2, 10), 255)
    arrays = {"input_ids": ids, "word_starts": starts, "pos": pos, "ner": nothing, "dep": nothing}
    record = write_shard(tmp_path, "00000-000", arrays)
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    tags = {task: list(names) for task, names in LTP_TAGS.items()}
    manifest = Manifest(10, len(PIECES), "x", special, tags, 2, [record], {}, {}, {}, {})
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_words_their_pieces_and_tags(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(corpus, 5)
    shown = capsys.readouterr().out
    assert "2 instances of 10 tokens" in shown
    assert "instance 0: 6 tokens in 4 words, 1 of padding; tags: pos" in shown
    assert "[CLS] 我/r 爱/v 北·京/ns [SEP] git·##hub/_ [SEP]\n" in shown
    assert "instance 1: 1 tokens in 1 words, 7 of padding; tags: none\n[CLS] [UNK] [SEP]" in shown
    masked = shown.split("masked")[1].split("\n")
    assert masked[1].count("⟦") == 1
    assert masked[2].startswith("to predict: ")


def test_show_in_the_command(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lert_ds.cli import main

    main(["prepare", "--show", "1", str(corpus)])
    assert "instance 0" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "--show", "1", str(corpus / "missing")])
    assert stopped.value.code == 2
    assert "missing: no such corpus folder" in capsys.readouterr().err


def test_what_cannot_be_shown(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="--show 0"):
        show(corpus, 0)
    (corpus / "vocab.txt").unlink()
    with pytest.raises(CorpusError, match=r"vocab.txt: the file is missing"):
        show(corpus, 1)
    manifest = json.loads((corpus / "manifest.json").read_text())
    (corpus / "manifest.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(CorpusError, match="format 9"):
        show(corpus, 1)
