"""What a pruned vocabulary does to text, counted."""

import json
from pathlib import Path

import torch

from lert_ds import tokenizer_files
from prune.vocabulary import pruned_tokenizer
from prune.vocabulary.coverage import measure

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "今", "天", "好", "a", "##b", "ab", "。"]


def test_by_hand(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    whole = tokenizer_files.load(source)
    gone = {"天", "ab", "好"}
    kept = torch.tensor([number for number, piece in enumerate(PIECES) if piece not in gone])
    pruned = pruned_tokenizer.save(source, kept, tmp_path / "target")
    # 今 天 。 | ab 。 (now a ##b 。) | 今 a [UNK] | 天 天 | nothing
    coverage = measure(whole, pruned, kept, ["今天。", "ab。", "今a x", "天天", "\u200b"])
    assert coverage.sentences == 5
    assert coverage.changed_sentences == 3
    assert coverage.tokens == 3 + 2 + 3 + 2
    assert coverage.tokens_after == 3 + 3 + 3 + 2
    assert coverage.tokens_kept == 2 + 1 + 3 + 0
    assert (coverage.unknown, coverage.unknown_after) == (1, 4)
    assert coverage.lost_pieces == (("天", 3), ("ab", 1))
    assert (coverage.kept_share, coverage.new_unknown_share) == (0.6, 0.3)
    assert coverage.changed_share == 0.6
    tree = coverage.as_json()
    assert json.loads(json.dumps(tree))["lost_pieces"] == [["天", 3], ["ab", 1]]
    assert tree["new_unknown_share"] == 0.3
    assert str(coverage) == (
        "of 10 tokens 60.00% kept, 30.00% newly [UNK]; of 5 sentences 60.00% changed"
    )


def test_all_pieces_change_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    whole = tokenizer_files.load(source)
    kept = torch.arange(len(PIECES))
    pruned = pruned_tokenizer.save(source, kept, tmp_path / "target")
    coverage = measure(whole, pruned, kept, ["今天好abb", "x"] * 1500)
    assert coverage.sentences == 3000
    assert coverage.changed_sentences == coverage.unknown_after - coverage.unknown == 0
    assert coverage.kept_share == 1
    assert coverage.lost_pieces == ()
