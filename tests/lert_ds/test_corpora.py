from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lert_ds import training_run
from lert_ds.data.shards import HELD_OUT, Corpus
from lert_ds.labels import IGNORE_INDEX


def test_baselines_are_of_the_held_out_text(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    found = training_run.open_corpora(run_on(tiny_corpus, tmp_path)).baselines()
    corpus = Corpus([tiny_corpus / HELD_OUT])
    ids = np.concatenate([corpus[index].input_ids[1:-1] for index in range(len(corpus))])
    shares = np.unique(ids, return_counts=True)[1] / len(ids)
    assert found["mlm/loss"]["unigram entropy"] == pytest.approx(-(shares * np.log(shares)).sum())
    tags = np.concatenate([corpus[index].tags["ner"] for index in range(len(corpus))])
    tags = tags[tags != IGNORE_INDEX]
    majority = np.bincount(tags).max() / len(tags)
    assert found["ner/accuracy"]["majority tag"] == pytest.approx(majority)
