import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.data import loader
from lert_ds.data.loader import Batching, document_ends, evaluation_batches, training_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.rows import RowLengths
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus, Manifest, write_manifest, write_shard
from lert_ds.errors import CorpusError
from lert_ds.labels import LTP_TAGS, TASKS
from lert_ds.objective import Batch

PAD, CLS, SEP, MASK = 0, 2, 3, 4
LENGTH = 60
INSTANCES = 23
MASKING = MaskingConfig()


def write_corpus(folder: Path, lengths: list[int]) -> Path:
    """Write instances of `lengths` tokens, padded to LENGTH, in two shards."""
    generator = np.random.default_rng(4)
    shape = (len(lengths), LENGTH)
    real = np.arange(LENGTH) < np.array(lengths)[:, None]
    ids = generator.integers(5, 1000, shape)
    starts = generator.random(shape) < 0.6
    ids[:, 0] = CLS
    ids[np.arange(shape[0]), np.array(lengths, np.int64) - 1] = SEP
    ids[~real] = PAD
    starts &= ids > MASK
    tags = {task: generator.integers(0, 13, shape) for task in TASKS}
    for classes in tags.values():
        classes[generator.random(shape) < 0.2] = 255
    arrays = {"input_ids": ids, "word_starts": starts, **tags}
    half = len(lengths) // 2
    parts = (slice(0, half), slice(half, None))
    records = [
        write_shard(
            folder, f"{number:05d}-000", {name: array[part] for name, array in arrays.items()}
        )
        for number, part in enumerate(parts)
    ]
    manifest = Manifest(
        length=LENGTH,
        vocabulary_size=1000,
        tokenizer_sha256="aa",
        special_ids={"pad": PAD, "unk": 1, "cls": CLS, "sep": SEP, "mask": MASK},
        tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
        instances=len(lengths),
        shards=records,
        counts={},
        statistics={},
        config={},
        versions={},
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    lengths = np.random.default_rng(1).integers(16, 51, INSTANCES).tolist()
    return Corpus([write_corpus(tmp_path_factory.mktemp("corpus"), lengths)])


def micro_batches(
    corpus: Corpus, micro: int = 4, rank: int = 0, world_size: int = 1, start: int = 0
) -> MicroBatches:
    return MicroBatches(len(corpus), 7, 16, micro, rank, world_size, start)


def take(batches: Iterable[tuple[int, Batch]], count: int) -> list[tuple[int, Batch]]:
    return list(itertools.islice(batches, count))


def fingerprint(batch: Batch) -> list[object]:
    mask = batch.attention_mask
    return [
        batch.input_ids.tolist(),
        None if mask is None else mask.tolist(),
        batch.masked_positions.tolist(),
        batch.labels.tolist(),
        {task: classes.tolist() for task, classes in batch.tags.items()},
    ]


def fingerprints(batches: Iterable[tuple[int, Batch]], count: int) -> list[object]:
    return [(number, fingerprint(batch)) for number, batch in take(batches, count)]


def test_a_batch_says_what_the_corpus_says(corpus: Corpus) -> None:
    order = micro_batches(corpus)
    for number, batch in take(training_batches(corpus, MASKING, order), 12):
        indices = order.samples(number).indices.tolist()
        rows, length = batch.input_ids.shape
        assert rows == len(indices) == 4
        original = np.stack([corpus[index].input_ids[:length] for index in indices])
        longest = int((original != PAD).sum(axis=1).max())
        assert length == min(LENGTH, -(-longest // 8) * 8)
        assert batch.attention_mask is not None
        np.testing.assert_array_equal(batch.attention_mask, original != PAD)
        assert batch.attention_mask.dtype == torch.bool

        places = batch.masked_positions.numpy()
        np.testing.assert_array_equal(batch.labels, original.reshape(-1)[places])
        for task in TASKS:
            tags = np.stack([corpus[index].tags[task][:length] for index in indices])
            np.testing.assert_array_equal(batch.tags[task], tags.reshape(-1)[places])
        left = np.setdiff1d(np.arange(rows * length), places)
        np.testing.assert_array_equal(
            batch.input_ids.numpy().reshape(-1)[left], original.reshape(-1)[left]
        )
        assert (batch.input_ids.numpy().reshape(-1)[places] == MASK).mean() > 0.5
        counts = np.bincount(places // length, minlength=rows)
        tokens = (original > MASK).sum(axis=1)
        limit = 75 * LENGTH // 512
        for count, size in zip(counts, tokens, strict=True):
            assert count == min(limit, max(1, round(0.15 * size)))
        whole = [batch.input_ids, batch.masked_positions, batch.labels, *batch.tags.values()]
        assert {tensor.dtype for tensor in whole} == {torch.int64}


def test_nothing_padded_needs_no_attention_mask(tiny_corpus: Path) -> None:
    full = Corpus([tiny_corpus])
    _, batch = next(training_batches(full, MASKING, micro_batches(full)))
    assert batch.attention_mask is None
    assert batch.input_ids.shape == (4, full.length)


def test_a_length_that_is_no_multiple_of_8_is_kept(tmp_path: Path) -> None:
    full = Corpus([write_corpus(tmp_path, [LENGTH, LENGTH])])
    (batch,) = evaluation_batches(full, MASKING, 2)
    assert batch.input_ids.shape == (2, LENGTH)
    assert batch.attention_mask is None
    original = np.stack([full[0].input_ids, full[1].input_ids]).reshape(-1)
    np.testing.assert_array_equal(batch.labels, original[batch.masked_positions])


SHORTER = RowLengths([(0, 20), (16, 30), (40, LENGTH)])


def test_rows_get_longer_with_the_samples(corpus: Corpus) -> None:
    order = micro_batches(corpus)
    numbered = take(training_batches(corpus, MASKING, order, lengths=SHORTER), 12)
    shapes = [tuple(batch.input_ids.shape) for _, batch in numbered]
    # An instance of 60 is three rows of 20 or two of 30; the padding stays, so shapes do not vary.
    assert shapes == [(12, 20)] * 4 + [(8, 30)] * 6 + [(4, 60)] * 2
    for number, batch in numbered:
        indices = order.samples(number).indices.tolist()
        rows = batch.input_ids.clone().view(-1)
        rows[batch.masked_positions] = batch.labels
        original = np.concatenate([corpus[index].input_ids for index in indices])
        text = rows[rows > MASK].tolist()
        missing = len(original[original > MASK]) - len(text)
        assert 0 <= missing <= 5 * len(batch.input_ids)
        length = batch.input_ids.shape[1]
        counts = np.bincount(batch.masked_positions // length, minlength=len(batch.input_ids))
        tokens = (rows.view(-1, length) > MASK).sum(1)
        limit = 75 * length // 512
        for count, size in zip(counts, tokens.tolist(), strict=True):
            budget = min(limit, max(1, round(0.15 * size))) if size else 0
            assert count <= budget
            assert count == budget or size < 10  # a few words may all be longer than the budget
        assert {len(classes) for classes in batch.tags.values()} == {len(batch.labels)}


def test_the_full_length_is_the_stream_without_lengths(tiny_corpus: Path) -> None:
    full = Corpus([tiny_corpus])
    plain = fingerprints(training_batches(full, MASKING, micro_batches(full)), 6)
    lengths = RowLengths([(0, full.length)])
    found = training_batches(full, MASKING, micro_batches(full), lengths=lengths)
    assert fingerprints(found, 6) == plain


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 16, 32, 48])
def test_neither_ranks_nor_resuming_change_the_rows(
    corpus: Corpus, world_size: int, start: int
) -> None:
    whole = training_batches(corpus, MASKING, micro_batches(corpus), lengths=SHORTER)
    expected = dict(fingerprints(whole, 16))
    lengths = RowLengths([(max(first, start), n) for first, n in SHORTER.borders])
    for rank in range(world_size):
        order = micro_batches(corpus, rank=rank, world_size=world_size, start=start)
        batches = training_batches(corpus, MASKING, order, lengths=lengths)
        for number, found in fingerprints(batches, (64 - start) // 4 // world_size):
            assert found == expected[number]


def test_workers_do_not_change_the_rows(corpus: Corpus) -> None:
    order = micro_batches(corpus)
    here = fingerprints(training_batches(corpus, MASKING, order, lengths=SHORTER), 12)
    there = training_batches(corpus, MASKING, order, lengths=SHORTER, workers=2)
    assert fingerprints(there, 12) == here


@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_in_shorter_rows_has_every_instance_once(
    corpus: Corpus, world_size: int
) -> None:
    def labels(length: int | None, world: int) -> list[int]:
        return sorted(
            label
            for rank in range(world)
            for batch in evaluation_batches(
                corpus, MASKING, 4, rank=rank, world_size=world, length=length
            )
            for label in batch.labels.tolist()
        )

    batches = list(evaluation_batches(corpus, MASKING, 4, length=20))
    assert {batch.input_ids.shape[1] for batch in batches} == {20}
    assert sum(len(batch.input_ids) for batch in batches) == 3 * INSTANCES
    assert labels(20, world_size) == labels(20, 1) != labels(None, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_stream(corpus: Corpus, workers: int) -> None:
    order = micro_batches(corpus)
    here = fingerprints(training_batches(corpus, MASKING, order), 15)
    there = fingerprints(training_batches(corpus, MASKING, order, workers=workers), 15)
    assert here == there


def test_ranks_do_not_change_the_stream(corpus: Corpus) -> None:
    whole = dict(fingerprints(training_batches(corpus, MASKING, micro_batches(corpus)), 16))
    for world_size in (2, 4):
        parts: dict[int, object] = {}
        for rank in range(world_size):
            order = micro_batches(corpus, rank=rank, world_size=world_size)
            batches = training_batches(corpus, MASKING, order)
            parts |= dict(fingerprints(batches, 16 // world_size))
        assert parts == whole


def test_a_resumed_run_sees_the_tail(corpus: Corpus) -> None:
    whole = fingerprints(training_batches(corpus, MASKING, micro_batches(corpus)), 16)
    for steps in (1, 2, 3):
        order = micro_batches(corpus, start=steps * 16)
        tail = fingerprints(training_batches(corpus, MASKING, order), 16 - steps * 4)
        assert tail == whole[steps * 4 :]


def test_each_epoch_masks_anew(corpus: Corpus) -> None:
    order = MicroBatches(INSTANCES, 7, INSTANCES, INSTANCES)
    (_, first), (_, second) = take(training_batches(corpus, MASKING, order), 2)
    assert sorted(map(tuple, first.input_ids.tolist())) != sorted(
        map(tuple, second.input_ids.tolist())
    )
    assert len(first.labels) == len(second.labels)


def test_the_global_generator_is_left_alone(corpus: Corpus) -> None:
    # Else a run that is resumed would draw other dropout than one that was not interrupted.
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(training_batches(corpus, MASKING, micro_batches(corpus), workers=workers))
        next(evaluation_batches(corpus, MASKING, 4, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("micro", [1, 4, 23, 64])
def test_evaluation_is_the_same_for_any_world_size(corpus: Corpus, micro: int) -> None:
    def rows(world_size: int) -> list[tuple[object, ...]]:
        """Return for each row with predictions: its masked ids, labels and tags."""
        found = []
        plans = [
            list(evaluation_batches(corpus, MASKING, micro, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert len({len(plan) for plan in plans}) == 1
        for batch in itertools.chain.from_iterable(zip(*plans, strict=True)):
            length = batch.input_ids.shape[1]
            for row, ids in enumerate(batch.input_ids):
                here = batch.masked_positions // length == row
                if here.any():
                    real = tuple(ids[ids != PAD].tolist())
                    tags = tuple(tuple(batch.tags[task][here].tolist()) for task in TASKS)
                    found.append((real, tuple(batch.labels[here].tolist()), tags))
        return found

    alone = rows(1)
    assert len(alone) == INSTANCES
    for index, (ids, _, _) in enumerate(alone):
        assert len(ids) == (corpus[index].input_ids != PAD).sum()
    for world_size in (2, 3, 5):
        assert rows(world_size) == alone


def test_a_rank_that_has_run_out_gets_batches_that_count_nowhere(corpus: Corpus) -> None:
    batches = list(evaluation_batches(corpus, MASKING, 10, rank=3, world_size=4))
    assert len(batches) == 1
    assert batches[0].input_ids.shape[0] == 1
    assert len(batches[0].masked_positions) == len(batches[0].labels) == 0
    assert all(len(classes) == 0 for classes in batches[0].tags.values())
    assert batches[0].labels.dtype == batches[0].masked_positions.dtype == torch.int64


def test_evaluation_repeats_its_masks(corpus: Corpus) -> None:
    first, second, workers = (
        [fingerprint(batch) for batch in evaluation_batches(corpus, MASKING, 4, workers=count)]
        for count in (0, 0, 2)
    )
    assert first == second == workers


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    empty = Corpus([write_corpus(tmp_path, [])])
    with pytest.raises(CorpusError, match=str(tmp_path)):
        evaluation_batches(empty, MASKING, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_breaks_meanwhile_is_told_in_one_line(tmp_path: Path, workers: int) -> None:
    corpus = Corpus([write_corpus(tmp_path, [20] * 8)])
    path = tmp_path / "shards" / "00001-000.dep.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorpusError) as error:
        list(evaluation_batches(corpus, MASKING, 2, workers=workers))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_workers_leave_ctrl_c_to_the_trainer_and_end_with_the_iterator(corpus: Corpus) -> None:
    before = set(multiprocessing.active_children())
    batches = training_batches(corpus, MASKING, micro_batches(corpus), workers=2)
    numbers = [next(batches)[0]]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    numbers += [number for number, _ in take(batches, 30)]
    assert numbers == list(range(31))
    assert all(worker.is_alive() for worker in workers)
    del batches
    gc.collect()
    deadline = time.monotonic() + 10
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_alive() for worker in workers)


def test_a_worker_lives_through_ctrl_c_while_it_starts(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_worker = loader._start_worker

    def interrupted(worker: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start_worker(worker)

    monkeypatch.setattr(loader, "_start_worker", interrupted)
    batches = training_batches(corpus, MASKING, micro_batches(corpus), workers=1)
    assert [number for number, _ in take(batches, 3)] == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a CUDA device")
def test_pinned_batches_are_the_same(corpus: Corpus) -> None:
    order = micro_batches(corpus)
    plain = fingerprints(training_batches(corpus, MASKING, order), 5)
    pinned = take(training_batches(corpus, MASKING, order, workers=1, pin_memory=True), 5)
    assert [(number, fingerprint(batch)) for number, batch in pinned] == plain
    assert all(batch.input_ids.is_pinned() for _, batch in pinned)


def test_workers_end_with_a_process_that_is_killed(tiny_corpus: Path) -> None:
    script = f"""
import sys, time
import psutil
from pathlib import Path
from lert_ds.data.loader import training_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.rows import RowLengths
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus
corpus = Corpus([Path({str(tiny_corpus)!r})])
order = MicroBatches(len(corpus), 0, 2, 2)
batches = training_batches(corpus, MaskingConfig(), order, workers=2)
next(batches)
print(*[child.pid for child in psutil.Process().children()], flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    for worker in workers:
        worker.suspend()  # such a one looks for nothing
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    for worker in alive:
        worker.kill()
    assert not alive


def test_documents_end_in_sep_and_rows_end_them_too() -> None:
    ids = np.array([[CLS, 7, 8, SEP, 9, SEP, PAD, PAD], [CLS, 7, 8, 9, 7, 8, 9, 7]])
    assert document_ends(ids, SEP).tolist() == [4, 6, 8, 16]
    assert document_ends(ids[:1], SEP).tolist() == [4, 6, 8, 8]
    assert document_ends(ids[1:], SEP).tolist() == [8, 8]


@given(
    rows=st.lists(st.lists(st.sampled_from([SEP, 7]), min_size=5, max_size=5), min_size=1),
)
def test_documents_part_the_batch(rows: list[list[int]]) -> None:
    ids = np.array(rows)
    ends = document_ends(ids, SEP)
    assert len(ends) & (len(ends) - 1) == 0
    assert (np.diff(ends) >= 0).all()
    assert ends[-1] == ids.size
    # Every [SEP] and every row closes a document, and nothing else does.
    closed = {place + 1 for place in np.flatnonzero(ids.reshape(-1) == SEP)}
    assert set(ends.tolist()) == closed | set(range(5, ids.size + 1, 5))


def test_a_batch_says_where_documents_end_only_where_they_part(corpus: Corpus) -> None:
    _, plain = next(training_batches(corpus, MASKING, micro_batches(corpus)))
    parted = Batching(part_documents=True)
    _, batch = next(training_batches(corpus, MASKING, micro_batches(corpus), batching=parted))
    assert plain.document_ends is None
    assert fingerprint(batch) == fingerprint(plain)
    assert batch.document_ends is not None
    assert batch.document_ends.dtype == torch.int32
    assert batch.to(torch.device("cpu")).document_ends is not None


def test_kept_padding_gives_one_shape_and_the_same_words(corpus: Corpus) -> None:
    kept = Batching(keep_padding=True)
    cut = take(training_batches(corpus, MASKING, micro_batches(corpus, micro=1)), 20)
    whole = take(
        training_batches(corpus, MASKING, micro_batches(corpus, micro=1), batching=kept), 20
    )
    assert len({batch.input_ids.shape for _, batch in cut}) > 1
    assert {tuple(batch.input_ids.shape) for _, batch in whole} == {(1, LENGTH)}
    for (_, one), (_, other) in zip(cut, whole, strict=True):
        length = one.input_ids.shape[1]
        assert torch.equal(other.input_ids[:, :length], one.input_ids)
        assert torch.equal(other.masked_positions, one.masked_positions)
        assert torch.equal(other.labels, one.labels)
