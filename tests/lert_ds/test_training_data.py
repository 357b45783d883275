from pathlib import Path
from typing import Any

from lert_ds import training_run
from lert_ds.labels import LTP_TAGS
from lert_ds.training_data import DataFacts, TrainingData


def test_a_corpus_that_is_not_there_is_planned_as_lert_has_it() -> None:
    facts = DataFacts.assumed(128)
    assert (facts.length, facts.vocabulary_size, facts.instances) == (128, 21_128, None)
    assert facts.tag_sets == LTP_TAGS


def test_corpora_are_training_data(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    data: TrainingData = training_run.open_corpora(run_on(tiny_corpus, tmp_path))
    assert data.facts.instances == 64
    assert data.facts.held_out == 13
    data.verify(0, 1)
