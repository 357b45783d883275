import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lert_ds import training_run
from lert_ds.data.shards import HELD_OUT, Corpus
from lert_ds.kernels.apply import choose
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.labels import IGNORE_INDEX

KERNELS = choose(KernelsConfig(), torch.device("cpu"))


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


def test_rows_follow_the_step(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    train = {
        "steps": 9, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3,
        "batch_warmup": [[0, 4], [2, 8]], "lengths": [[0, 8], [3, 32]], "data_workers": 0,
    }  # fmt: skip
    run = run_on(tiny_corpus, tmp_path, train=train)
    data = training_run.open_corpora(run).batches(run.train, 0, 4)

    def shapes(step: int, samples: int, count: int) -> list[tuple[int, ...]]:
        stream = itertools.islice(data.training(step, samples), count)
        return [tuple(batch.input_ids.shape) for _, batch in stream]

    # Steps of 1, 1 and 2 micro-batches in rows of 8, then full ones.
    assert shapes(0, 0, 6) == [(16, 8)] * 4 + [(4, 32)] * 2
    assert shapes(2, 8, 3) == [(16, 8)] * 2 + [(4, 32)]
    # A run that had another batch before stands at its step, not at the samples of the schedule.
    assert shapes(2, 800, 3) == [(16, 8)] * 2 + [(4, 32)]
    assert shapes(3, 40, 1) == [(4, 32)]


def test_held_out_rows_are_as_long_as_those_of_the_last_step(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    train = {
        "steps": 9, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3,
        "lengths": [[0, 8], [3, 32]],
    }  # fmt: skip
    run = run_on(tiny_corpus, tmp_path, train=train)
    data = training_run.open_corpora(run).batches(run.train, 0, 4)
    assert data.evaluation is not None
    lengths = [next(iter(data.evaluation(step))).input_ids.shape[1] for step in (0, 3, 4, 9)]
    assert lengths == [8, 8, 32, 32]


def test_documents_part_where_the_run_says_so(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    for part in (False, True):
        run = run_on(tiny_corpus, tmp_path, attend_across_documents=not part)
        corpora = training_run.open_corpora(run)
        data = corpora.batches(run.train, 0, run.train.micro_batch_size)
        assert data.evaluation is not None
        batches = [next(data.training(0, 0))[1], next(iter(data.evaluation(0)))]
        assert [batch.document_ends is not None for batch in batches] == [part, part]
        assert corpora.for_kernels(KERNELS) is corpora
        compiled = corpora.for_kernels(replace(KERNELS, compile="layers"))
        assert compiled.batching.part_documents is part
        assert compiled.batching.keep_padding
