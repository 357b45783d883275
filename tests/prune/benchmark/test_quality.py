"""Held-out figures: graphs and models by the same sums, smaller vocabularies, fewer instances."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lert_ds import model_dir
from lert_ds.data.shards import HELD_OUT
from lert_ds.errors import ConfigError, ModelError
from lert_ds.evaluation import Missing, evaluate
from lert_ds.labels import IGNORE_INDEX
from lert_ds.model_surgery import Cut, cut
from lert_ds.objective import Batch
from prune.benchmark.columns import find_columns
from prune.benchmark.models import runner
from prune.benchmark.quality import UNKNOWN_SHARE, HeldOut, evaluate_graph
from prune.vocabulary import pruned_tokenizer

MEASURES = {
    "mlm/loss", "mlm/accuracy", "pos/loss", "pos/accuracy", "dep/loss", "dep/accuracy",
    UNKNOWN_SHARE,
}  # fmt: skip


def test_graphs_reach_what_the_model_reaches(
    tiny_model: Path, tiny_edge: Path, tiny_corpus: Path
) -> None:
    held_out = HeldOut((tiny_corpus,), None)
    model, fp32, int8 = (
        held_out.evaluate(column)
        for column in find_columns([str(tiny_model), str(tiny_edge)], [], "fp32")
    )
    assert set(model) == MEASURES
    assert fp32 == pytest.approx(model, abs=1e-4)
    assert int8 != pytest.approx(model, abs=1e-6)
    assert int8 == pytest.approx(model, abs=0.2)
    assert model[UNKNOWN_SHARE] == 0


def test_the_sums_are_those_of_evaluate_with_padding_and_unknown_tags(tiny_model: Path) -> None:
    model, _ = model_dir.load(tiny_model)
    model.eval()
    tag_sets = model.config.tag_sets
    assert tag_sets is not None
    batches = []
    for number, (places, ignored) in enumerate((([1, 5, 17], 1), ([2], 0), ([], 0))):
        ids = torch.arange(40).reshape(2, 20) % 40 + 5
        mask = torch.ones(2, 20, dtype=torch.bool)
        mask[1, 12:] = False
        tags = torch.arange(len(places)) + number
        tags[:ignored] = IGNORE_INDEX
        batches.append(
            Batch(ids, mask if number else None, torch.tensor(places, dtype=torch.int64),
                  torch.tensor(places, dtype=torch.int64) % 45, {"pos": tags, "dep": tags})
        )  # fmt: skip
    missing = Missing(5, 2.5)
    assert any(bool((batch.labels == 5).any()) for batch in batches)
    wanted = evaluate(model, batches, tag_sets, missing)
    found = evaluate_graph(runner(model), batches, ("pos", "dep"), missing)
    assert set(found) == MEASURES - {UNKNOWN_SHARE}
    assert found == pytest.approx({name: wanted[name] for name in found}, abs=1e-5)

    def everywhere(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A graph without masked_positions, which scores every position.
        whole = runner(model)({**inputs, "masked_positions": np.arange(40)})
        return {name: logits.reshape(2, 20, -1) for name, logits in whole.items()}

    assert evaluate_graph(everywhere, batches, ("pos", "dep"), missing) == pytest.approx(
        found, abs=1e-5
    )


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1000.0, 0.0], [1000.0, 999.0]], np.float32)
    batch = Batch(
        torch.ones(1, 2, dtype=torch.int64), None, torch.arange(2), torch.tensor([0, 1]), {}
    )
    found = evaluate_graph(lambda _: {"logits": logits}, [batch], (), Missing(9, 0.0))
    assert found == pytest.approx({"mlm/loss": (0 + np.log1p(np.e)) / 2, "mlm/accuracy": 0.5})


def test_a_smaller_vocabulary_reads_the_corpus_in_its_own_ids(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    model, _ = model_dir.load(tiny_model)
    held_out = HeldOut((tiny_corpus,), None)
    (whole,) = find_columns([str(tiny_model)], [], "fp32")
    labels = np.concatenate([b.labels.numpy() for b in held_out._batches(held_out.view(whole))])
    pieces = torch.tensor([*range(5), *range(7, 45)])  # two characters go
    pruned_tokenizer.save(tiny_model, pieces, tmp_path / "tokens")
    model_dir.save(cut(model, Cut(pieces=pieces)), tmp_path / "tokens", tmp_path / "pruned")
    (column,) = find_columns([str(tmp_path / "pruned")], [], "fp32")
    found = held_out.evaluate(column)
    assert found[UNKNOWN_SHARE] == pytest.approx(np.isin(labels, [5, 6]).mean())
    assert found[UNKNOWN_SHARE] > 0
    assert np.isfinite(found["mlm/loss"])


def test_instances_are_rounded_up_to_batches(tiny_model: Path, tiny_corpus: Path) -> None:
    (column,) = find_columns([str(tiny_model)], [], "fp32")
    some, all_ = HeldOut((tiny_corpus,), 17), HeldOut((tiny_corpus,), 1000)
    assert (some.instances, all_.instances) == (32, 64)
    assert sum(len(b.input_ids) for b in some._batches(some.view(column))) == 32
    assert some.evaluate(column)["mlm/loss"] != all_.evaluate(column)["mlm/loss"]
    assert some.record() == {"corpus": [str(tiny_corpus)], "instances": 32, "length": 32}


def test_a_corpus_that_does_not_fit_is_refused(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    config = model_dir.read_config(tiny_model, max_position_embeddings=16)
    torch.manual_seed(0)
    model_dir.save(model_dir.LertForPreTraining(config), tiny_model, tmp_path / "short")
    (column,) = find_columns([str(tmp_path / "short")], [], "fp32")
    with pytest.raises(ConfigError, match=r"instances of 32 tokens, but .*short has 16 positions"):
        HeldOut((tiny_corpus / HELD_OUT,), None).view(column)
    lines = (tiny_model / "vocab.txt").read_text("utf-8").splitlines()
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text("\n".join([*lines[:5], *lines[:4:-1]]) + "\n", "utf-8")
    model, _ = model_dir.load(tiny_model)
    model_dir.save(model, other, tmp_path / "foreign")
    (column,) = find_columns([str(tmp_path / "foreign")], [], "fp32")
    with pytest.raises(ModelError):
        HeldOut((tiny_corpus,), None).view(column)
