import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lert_ds import distributed
from lert_ds.data.shards import HELD_OUT
from lert_ds.errors import ModelError
from lert_ds.objective import Batch
from prune.prune_config import PruneRun
from prune.pruning_text import PruningText

Make = Callable[..., PruneRun]


def rows(batches: list[Batch]) -> list[tuple[int, ...]]:
    return sorted(tuple(row) for batch in batches for row in batch.input_ids.tolist())


def test_the_sample_is_the_same_for_any_number_of_processes(
    prune_run: Make, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = {"method": "fisher", "instances": 32, "batch_size": 4}
    text = PruningText.open(prune_run(scoring=scoring), small_model, 32)
    whole = text.scoring_batches()
    assert [len(batch.input_ids) for batch in whole] == [4] * 8
    shares: list[Batch] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = text.scoring_batches()
        assert len(share) == 4
        shares += share
        # To refit by, every process has all of them.
        assert rows(text.repair_batches(32)) == rows(text.repair_batches(32))
        assert sum(len(batch.input_ids) for batch in text.repair_batches(32)) == 32
    assert rows(shares) == rows(whole)


def test_another_seed_is_another_sample(prune_run: Make, small_model: Path) -> None:
    first, second = (
        rows(PruningText.open(prune_run(seed=seed), small_model, 32).scoring_batches())
        for seed in (1, 2)
    )
    assert first != second


def test_a_corpus_is_gone_through_at_most_once(prune_run: Make, small_model: Path) -> None:
    text = PruningText.open(prune_run(), small_model, 32)
    assert sum(len(batch.input_ids) for batch in text.repair_batches(10_000)) == 64


def test_magnitude_reads_nothing(prune_run: Make, small_model: Path) -> None:
    text = PruningText.open(prune_run(scoring={"method": "magnitude"}), small_model, 32)
    assert text.scoring_batches() == []


def test_what_is_measured_on_is_capped_and_knows_what_a_missing_word_costs(
    prune_run: Make, small_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    text = PruningText.open(prune_run(held_out_instances=13), small_model, 32)
    batches, missing = text.held_out_batches(small_model)
    assert sum(len(batch.input_ids) for batch in batches) == 13
    pieces = (tiny_corpus / "vocab.txt").read_text("utf-8").splitlines()
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    (smaller / "vocab.txt").write_text("\n".join(pieces[:25]) + "\n", "utf-8")
    batches, missing = text.held_out_batches(smaller)
    assert missing == (1, pytest.approx(math.log(45)))  # of the whole, to compare with it
    assert int(torch.cat([batch.labels for batch in batches]).max()) < 25


def test_the_corpora_may_be_left_out(prune_run: Make, small_model: Path, tiny_corpus: Path) -> None:
    run = prune_run(corpus=[], corpus_valid=str(tiny_corpus / HELD_OUT))
    text = PruningText.open(run, small_model, 32)
    assert text.train is None
    assert text.valid is not None
    assert text.tag_sets == text.valid.tag_sets
    assert PruningText.open(prune_run(corpus=[], corpus_valid=[]), small_model, 32).tag_sets == {}


def test_instances_longer_than_the_model_takes_are_refused(
    prune_run: Make, small_model: Path
) -> None:
    with pytest.raises(ModelError, match=r"16 positions.*max_length=16"):
        PruningText.open(prune_run(), small_model, 16)
