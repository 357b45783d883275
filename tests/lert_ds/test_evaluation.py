from pathlib import Path

import pytest
import torch
from torch import nn

from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import evaluation_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.shards import Corpus
from lert_ds.evaluation import Missing, evaluate, evaluating, shared_tasks
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining

TAGS = {task: list(tags) for task, tags in LTP_TAGS.items()}


def modes(*models: nn.Module) -> list[bool]:
    return [part.training for model in models for part in model.modules()]


def test_every_part_gets_its_mode_back() -> None:
    mixed = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval())).train()
    mixed[1][0].eval()
    evaluated = nn.Dropout().eval()
    before = modes(mixed, evaluated)
    assert len(set(before)) == 2
    with evaluating(mixed, evaluated):
        assert not any(modes(mixed, evaluated))
    assert modes(mixed, evaluated) == before
    with pytest.raises(ZeroDivisionError), evaluating(mixed):
        raise ZeroDivisionError
    assert modes(mixed, evaluated) == before


def test_shared_tasks_have_the_same_tags_in_the_same_order() -> None:
    config = LertConfig(tag_sets={task: TAGS[task] for task in ("pos", "dep")})
    assert shared_tasks(config, TAGS) == ("pos", "dep")
    assert shared_tasks(config, TAGS | {"dep": TAGS["dep"][::-1]}) == ("pos",)
    assert shared_tasks(config, {"dep": TAGS["dep"]}) == ("dep",)
    assert shared_tasks(LertConfig(tag_sets=None), TAGS) == ()


def test_the_loss_is_the_mean_over_all_masked_positions_without_dropout(tiny_corpus: Path) -> None:
    corpus = Corpus([tiny_corpus])
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=45, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, hidden_dropout_prob=0.5,
        tag_sets={"pos": TAGS["pos"]},
    )  # fmt: skip
    model = LertForPreTraining(config).train()
    # 64 instances in batches of 24: the last one is smaller, and must not count more.
    found, same = (
        evaluate(model, evaluation_batches(corpus, MaskingConfig(), size), TAGS) for size in (24, 1)
    )
    assert model.training
    assert set(found) == {
        "mlm/loss", "mlm/accuracy", "pos/loss", "pos/accuracy", "pos/macro_f1",
    }  # fmt: skip
    assert found == pytest.approx(same, abs=1e-5)


def test_a_word_without_a_piece_is_missed_and_costs_what_saying_nothing_does(
    tiny_corpus: Path,
) -> None:
    torch.manual_seed(0)
    model = LertForPreTraining(
        LertConfig(
            vocab_size=45, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=32,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.cls.predictions.bias[1] = 9.0  # it says [UNK] everywhere
    batches = list(evaluation_batches(Corpus([tiny_corpus]), MaskingConfig(), 16))
    part = [
        batch._replace(labels=batch.labels.where(batch.labels % 2 == 0, 1)) for batch in batches
    ]
    odd = torch.cat([batch.labels % 2 for batch in batches]).double().mean().item()
    assert evaluate(model, part, {})["mlm/accuracy"] == pytest.approx(odd)  # easily guessed
    found = evaluate(model, part, {}, Missing(1, 3.5))
    assert found["mlm/accuracy"] == 0
    plain = evaluate(model, batches, {})["mlm/loss"]
    # All even labels cost alike: the bias outweighs the rest.
    assert found["mlm/loss"] == pytest.approx(odd * 3.5 + (1 - odd) * plain, rel=0.02)
    # Where every word has its piece, nothing changes.
    same = evaluate(model, batches, {}, Missing(1, 3.5))
    assert same["mlm/loss"] == pytest.approx(plain)
