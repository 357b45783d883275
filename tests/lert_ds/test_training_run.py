from pathlib import Path
from typing import Any

import pytest

from lert_ds import arithmetic, training_run
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.shards import HELD_OUT
from lert_ds.errors import ConfigError, CorpusError

SHAPE = LertConfig(
    num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=45
)


def test_the_held_out_folder_is_found(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    corpora = training_run.open_corpora(run_on(tiny_corpus, tmp_path))
    assert corpora.valid is not None
    assert corpora.valid.folders == [tiny_corpus / HELD_OUT]
    assert (len(corpora.train), len(corpora.valid)) == (64, 13)


def test_a_named_held_out_corpus_wins(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    corpora = training_run.open_corpora(
        run_on(tiny_corpus, tmp_path, corpus_valid=str(tiny_corpus))
    )
    assert corpora.valid is not None
    assert len(corpora.valid) == 64


def test_the_shape_of_uneven_layers_is_their_mean() -> None:
    plain = arithmetic.Shape(2, 32, 32, 64, 45)
    assert training_run.shape_of(SHAPE) == plain
    uneven = LertConfig(
        **SHAPE.to_dict() | {"layer_attention_heads": [1, 0], "layer_intermediate_sizes": [64, 16]}
    )
    assert training_run.shape_of(uneven) == arithmetic.Shape(2, 32, 8, 40, 45)


def test_corpora_are_read_in_a_smaller_vocabulary(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    corpora = training_run.open_corpora(run_on(tiny_corpus, tmp_path))
    assert corpora.tokenizer_folder == tiny_corpus
    assert corpora.in_vocabulary_of(str(tiny_corpus)) is corpora
    pieces = (tiny_corpus / "vocab.txt").read_text("utf-8").splitlines()
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    (smaller / "vocab.txt").write_text("\n".join(pieces[:30]) + "\n", "utf-8")
    found = corpora.in_vocabulary_of(str(smaller))
    assert found.tokenizer_folder == smaller
    assert found.valid is not None
    assert {c.manifest.vocabulary_size for c in (found.train, found.valid)} == {30}
    # An interrupted run must not go on in another vocabulary.
    assert found.fingerprint != corpora.fingerprint


def test_the_batch_is_solved_for_the_processes(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = run_on(tiny_corpus, tmp_path)
    for processes, accumulation in ((1, 4), (2, 2), (4, 1)):
        numbers = training_run.work_out(run, SHAPE, 1000, 32, processes, run.masked_share(32))
        assert numbers.accumulation == accumulation
        assert numbers.tree["gradient_accumulation_steps"] == accumulation
        assert numbers.tree["train_micro_batch_size_per_gpu"] == 2
    assert numbers.masked_share == pytest.approx(4 / 32)  # 15 % of 30 tokens, cut to 75/512


def test_the_micro_batch_is_an_upper_bound(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    train = {"steps": 10, "batch_size": 8, "micro_batch_size": 3, "learning_rate": 1e-3}
    run = run_on(tiny_corpus, tmp_path, train=train)
    for processes, micro, accumulation in ((1, 2, 4), (2, 2, 2), (8, 1, 1)):
        numbers = training_run.work_out(run, SHAPE, 1000, 32, processes, run.masked_share(32))
        assert (numbers.micro_batch_size, numbers.accumulation) == (micro, accumulation)
        assert numbers.tree["train_micro_batch_size_per_gpu"] == micro
        assert numbers.tree["gradient_accumulation_steps"] == accumulation
    facts = training_run.open_corpora(run).facts
    told = training_run.explain(
        run, training_run.work_out(run, SHAPE, 1000, 32, 2, run.masked_share(32)), facts, 2
    )
    assert "8 instances = 2 a micro-batch × 2 accumulated × 2 processes" in told
    assert "(train.micro_batch_size = 3 does not divide)" in told


def test_a_batch_that_the_processes_cannot_share_is_refused(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size = 8 is no multiple of 3 processes"):
        training_run.work_out(run_on(tiny_corpus, tmp_path), SHAPE, 1000, 32, 3, 0.15)


def test_the_dry_run_tells_the_arithmetic(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    run = run_on(tiny_corpus, tmp_path)
    corpora = training_run.open_corpora(run)
    text = training_run.explain(
        run, training_run.work_out(run, SHAPE, 1000, 32, 2, run.masked_share(32)), corpora.facts, 2
    )
    assert "8 instances = 2 a micro-batch × 2 accumulated × 2 processes" in text
    assert "64 instances of 32 tokens" in text
    assert "10 = 1.2 epochs" in text
    assert "2,560" in text  # tokens


def test_the_fingerprint_changes_with_the_corpus(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    whole = training_run.open_corpora(run_on(tiny_corpus, tmp_path))
    part = training_run.open_corpora(run_on(tiny_corpus / HELD_OUT, tmp_path))
    assert whole.fingerprint != part.fingerprint
    assert part.valid is None


def test_no_corpus_is_refused(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="corpus is empty"):
        training_run.open_corpora(run_on(tiny_corpus, tmp_path).model_copy(update={"corpus": ()}))
    with pytest.raises(CorpusError, match="nowhere"):
        training_run.open_corpora(run_on(tmp_path / "nowhere", tmp_path))


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 8), (2.5, 20), (0.01, 1), (0.126, 2)])
def test_epochs_become_whole_steps(
    run_on: Any, tiny_corpus: Path, tmp_path: Path, epochs: float, steps: int
) -> None:
    train = {"epochs": epochs, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3}
    run = training_run.with_steps(run_on(tiny_corpus, tmp_path, train=train), 64)
    assert (run.train.steps, run.train.epochs) == (steps, 0.0)
    assert training_run.with_steps(run, 64) is run


def test_epochs_of_an_unknown_length_are_refused(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    train = {"epochs": 1, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3}
    with pytest.raises(ConfigError, match=r"train.epochs = 1: .* say train.steps"):
        training_run.with_steps(run_on(tiny_corpus, tmp_path, train=train), None)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "train.steps is missing; say how many, or how many epochs"),
        ({"steps": 5, "epochs": 2}, "train.epochs = 2.0 and steps = 5: keep one"),
        ({"epochs": -1}, "train.epochs = -1.0: must be above 0"),
    ],
)
def test_steps_or_epochs(
    run_on: Any, tiny_corpus: Path, tmp_path: Path, given: dict[str, float], told: str
) -> None:
    train = {"batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3, **given}
    with pytest.raises(ConfigError, match=told):
        run_on(tiny_corpus, tmp_path, train=train)


GROWING = {
    "steps": 10, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3,
    "batch_warmup": [[0, 4], [4, 8]], "lengths": [[0, 8], [6, 32]],
}  # fmt: skip


def test_a_warmup_is_counted_and_told(run_on: Any, tiny_corpus: Path, tmp_path: Path) -> None:
    run = run_on(tiny_corpus, tmp_path, train=GROWING)
    facts = training_run.open_corpora(run).facts
    numbers = training_run.work_out(run, SHAPE, 1000, 32, 2, run.masked_share(32))
    assert numbers.tree["train_batch_size"] == 8
    text = training_run.explain(run, numbers, facts, 2)
    assert "to step 4: 4 instances a step as 16 rows of 8, 1 accumulated\n" in text
    assert "to step 6: 8 instances a step as 32 rows of 8, 2 accumulated\n" in text
    assert "to step 10: 8 instances a step as 8 rows of 32, 2 accumulated\n" in text
    samples = 4 * 4 + 6 * 8
    assert f"10 = {samples / 64:.1f} epochs" in text
    assert f"{samples * 32:,}\n" in text
    short, full = (
        arithmetic.flops_per_token(numbers.shape, n, numbers.masked_share) for n in (8, 32)
    )
    assert [numbers.flops_per_token_at(step) for step in (0, 5, 6, 9)] == pytest.approx(
        [short, short, full, full]
    )
    total = 32 * ((4 * 4 + 2 * 8) * short + 4 * 8 * full)
    assert f"{total:.3g} in all" in text


def test_a_run_that_ends_early_says_what_it_does_not_reach(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = run_on(tiny_corpus, tmp_path, train=GROWING | {"steps": 4})
    numbers = training_run.work_out(run, SHAPE, 1000, 32, 1, run.masked_share(32))
    text = training_run.explain(run, numbers, training_run.open_corpora(run).facts, 1)
    assert "the run ends before [4, 8] of train.batch_warmup" in text
    assert "the run ends before [6, 32] of train.lengths" in text


def test_the_memory_is_that_of_as_many_tokens(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    plain = run_on(tiny_corpus, tmp_path, train=GROWING | {"lengths": [], "batch_warmup": []})
    grown = run_on(tiny_corpus, tmp_path, train=GROWING)
    first, second = (
        training_run.work_out(run, SHAPE, 1000, 32, 1, run.masked_share(32)).memory
        for run in (plain, grown)
    )
    assert first == second


@pytest.mark.parametrize(("epochs", "steps"), [(0.25, 4), (0.5, 6), (1.0, 10), (2.0, 18)])
def test_epochs_of_a_warmup_take_more_steps(
    run_on: Any, tiny_corpus: Path, tmp_path: Path, epochs: float, steps: int
) -> None:
    run = run_on(tiny_corpus, tmp_path, train=GROWING | {"steps": 0, "epochs": epochs})
    assert training_run.with_steps(run, 64).train.steps == steps


@pytest.mark.parametrize(
    ("changes", "processes", "told"),
    [
        ({"lengths": [[0, 12]]}, 1, "train.lengths has rows of 12 tokens.* take one of 8, 16, 32"),
        ({"batch_warmup": [[0, 2], [1, 8]]}, 4, "a batch of 2 instances, .* multiple of 4"),
    ],
)
def test_a_schedule_that_does_not_divide_is_refused(
    run_on: Any, tiny_corpus: Path, tmp_path: Path, changes: Any, processes: int, told: str
) -> None:
    run = run_on(tiny_corpus, tmp_path, train=GROWING | changes)
    with pytest.raises(ConfigError, match=told):
        training_run.work_out(run, SHAPE, 1000, 32, processes, run.masked_share(32))


def test_examples_of_a_task_have_no_such_schedule(
    run_on: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    for key in ("batch_warmup", "lengths"):
        left = {other: [] for other in ("batch_warmup", "lengths") if other != key}
        run = run_on(tiny_corpus, tmp_path, train=GROWING | left)
        with pytest.raises(ConfigError, match=f"train.{key} is for training on a corpus"):
            training_run.work_out(run, SHAPE, 1000, 32, 1, 0.0)
