"""The loss of LERT, its weights over time and its metrics, against references."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LipConfig, PretrainingObjective, f1_counts, lip_weight
from lert_ds.train.metrics import MetricSums

CLASSES = {"pos": 4, "ner": 3, "dep": 5}
VOCABULARY = 300
"""Above IGNORE_INDEX: piece 255 is a piece like any other."""


def make_objective(
    lip: LipConfig | None = None, steps: int = 600, tasks: Any = CLASSES
) -> PretrainingObjective:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        tag_sets={task: [f"{task}{k}" for k in range(CLASSES[task])] for task in tasks},
    )
    return PretrainingObjective(LertForPreTraining(config), lip or LipConfig(), steps)


def make_batch(seed: int = 0, masked: int = 20, known: float = 0.7) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    tags = {}
    for task, classes in CLASSES.items():
        unknown = torch.rand(masked, generator=generator) >= known
        tags[task] = draw(classes, masked).masked_fill(unknown, IGNORE_INDEX)
    return Batch(
        input_ids=draw(VOCABULARY, 4, 12),
        attention_mask=None,
        masked_positions=torch.randperm(48, generator=generator)[:masked],
        labels=draw(VOCABULARY, masked),
        tags=tags,
    )


def reference_mean(logits: torch.Tensor, labels: torch.Tensor, ignore: int | None) -> float:
    """Cross entropy as the definition has it, in NumPy."""
    terms = []
    for row, label in zip(logits.detach().double().numpy(), labels.tolist(), strict=True):
        if label != ignore:
            terms.append(np.log(np.exp(row).sum()) - row[label])
    return float(np.mean(terms)) if terms else 0.0


@pytest.mark.parametrize(
    ("step", "weights"),
    [
        (0, (0.0, 0.0, 0.0)),
        (50, (0.5, 0.25, 1 / 6)),
        (100, (1.0, 0.5, 1 / 3)),
        (300, (1.0, 1.0, 1.0)),
        (599, (1.0, 1.0, 1.0)),
    ],
)
def test_loss_is_the_weighted_sum(step: int, weights: tuple[float, ...]) -> None:
    objective, batch = make_objective(), make_batch()
    batch.labels[0] = IGNORE_INDEX  # here it is a piece
    output = objective(batch, step=step)
    logits = objective.model(batch.input_ids, masked_positions=batch.masked_positions)
    wanted = reference_mean(logits.logits, batch.labels, ignore=None)
    assert float(output.metrics["mlm/loss"][1]) == 20
    for task, weight in zip(CLASSES, weights, strict=True):
        mean = reference_mean(logits.tag_logits[task], batch.tags[task], IGNORE_INDEX)
        total, count = output.metrics[f"{task}/loss"].tolist()
        assert count == int((batch.tags[task] != IGNORE_INDEX).sum())
        assert total / count == pytest.approx(mean, rel=1e-5)
        assert output.metrics[f"{task}/weight"].tolist() == pytest.approx([weight, 1])
        wanted += weight * mean
    assert output.loss.item() == pytest.approx(wanted, rel=1e-5)
    assert output.metrics["loss"].tolist() == pytest.approx([wanted, 1], rel=1e-5)


def test_published_schedule() -> None:
    """2,000,000 steps: POS, NER and DEP are in full after 333,000, 666,000 and 1,000,000."""
    ends = make_objective(steps=2_000_000).lert_loss.end_steps
    assert [round(ends[task], -3) for task in CLASSES] == [333_000, 667_000, 1_000_000]


@given(st.integers(-5, 10**7), st.floats(1e-3, 1e7))
def test_weight_stays_within_0_and_1(step: int, end_step: float) -> None:
    weight = lip_weight(step, end_step)
    assert 0 <= weight <= 1
    assert weight <= lip_weight(step + 1, end_step)
    assert weight == pytest.approx(np.clip(step / end_step, 0, 1))


def test_nothing_masked_costs_nothing() -> None:
    objective = make_objective()
    output = objective(make_batch(masked=0), step=300)
    assert output.loss.item() == 0
    output.loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert output.metrics["mlm/accuracy"].tolist() == [0, 0]


def test_task_without_known_tags_adds_nothing_but_takes_part() -> None:
    objective, batch = make_objective(), make_batch()
    batch.tags["ner"].fill_(IGNORE_INDEX)
    output = objective(batch, step=300)
    without = make_objective(LipConfig(tasks=("pos", "dep")))(batch, step=300)
    assert output.loss.item() == without.loss.item()
    output.loss.backward()
    gradient = objective.model.tag_head("ner").weight.grad
    assert gradient is not None
    assert not gradient.any()
    assert objective.model.tag_head("pos").weight.grad.any()
    assert "ner/accuracy" in output.metrics  # ranks add the same names


def test_the_loss_is_as_fine_as_the_logits_and_never_coarser_than_float32() -> None:
    objective = make_objective()
    for dtype, of_loss in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert objective.to(dtype)(make_batch(), step=10).loss.dtype == of_loss


def test_metrics_are_detached_float32_pairs() -> None:
    metrics = make_objective()(make_batch(), step=10).metrics
    assert set(metrics) == {"loss", "mlm/loss", "mlm/accuracy"} | {
        f"{task}/{name}" for task in CLASSES for name in ("loss", "accuracy", "weight")
    }
    for name, pair in metrics.items():
        assert (pair.dtype, pair.shape) == (torch.float32, (2,)), name
        assert not pair.requires_grad, name


def test_accuracy_counts_known_labels() -> None:
    objective, batch = make_objective(), make_batch()
    logits = objective.model(batch.input_ids, masked_positions=batch.masked_positions)
    best = logits.tag_logits["pos"].argmax(-1)
    batch.tags["pos"][:] = IGNORE_INDEX
    batch.tags["pos"][:4] = best[:4]
    batch.tags["pos"][4] = (best[4] + 1) % CLASSES["pos"]
    batch.labels[:] = logits.logits.argmax(-1)
    metrics = objective(batch, step=0).metrics
    assert metrics["pos/accuracy"].tolist() == [4, 5]
    assert metrics["mlm/accuracy"].tolist() == [20, 20]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([*range(6), IGNORE_INDEX])), min_size=1),
    st.integers(0, 30),
)
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]], cut: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted, labels = torch.tensor(pairs).T
    sums = MetricSums()
    for part in (slice(0, cut), slice(cut, None)):  # batches add
        sums.add({"f1": f1_counts(predicted[part], labels[part], classes=6)})
    known = labels != IGNORE_INDEX
    values = sums.reduce()
    if not known.any():
        assert values == {}
        return
    wanted = sklearn.f1_score(labels[known], predicted[known], average="macro")
    assert values["f1"] == pytest.approx(wanted)


def test_macro_f1_is_reported_in_evaluation_alone() -> None:
    objective, batch = make_objective().eval(), make_batch()
    metrics = objective(batch, step=0).metrics
    logits = objective.model(batch.input_ids, masked_positions=batch.masked_positions)
    for task, classes in CLASSES.items():
        best = logits.tag_logits[task].argmax(-1)
        assert torch.equal(metrics[f"{task}/macro_f1"], f1_counts(best, batch.tags[task], classes))
    assert "pos/macro_f1" not in objective.train()(batch, step=0).metrics


def test_bfloat16_logits_are_summed_in_float32() -> None:
    objective, batch = make_objective(), make_batch()
    objective.model.bfloat16()
    output = objective(batch, step=300)
    logits = objective.model(batch.input_ids, masked_positions=batch.masked_positions).logits
    assert logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    total, count = output.metrics["mlm/loss"].tolist()
    assert total / count == pytest.approx(reference_mean(logits.float(), batch.labels, None), 1e-5)


def test_head_of_a_task_that_is_not_trained_is_frozen() -> None:
    objective = make_objective(LipConfig(tasks=("pos",)))
    objective(make_batch(), step=300).loss.backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert not {name for name in trained if "output_ner" in name or "output_dep" in name}
    assert any("output_pos" in name for name in trained)


def test_mlm_alone() -> None:
    objective = make_objective(LipConfig(tasks=()), tasks=())
    metrics = objective(make_batch(), step=0).metrics
    assert set(metrics) == {"loss", "mlm/loss", "mlm/accuracy"}


def test_summary_adds_perplexity() -> None:
    summary = make_objective().summary
    assert summary({"mlm/loss": 2.0, "x": 1.0}) == {
        "mlm/loss": 2.0,
        "x": 1.0,
        "mlm/perplexity": pytest.approx(math.e**2),
    }
    assert summary({"mlm/loss": 1e6})["mlm/perplexity"] == math.inf
    assert summary({}) == {}


def test_padding_does_not_reach_the_loss() -> None:
    objective, batch = make_objective(), make_batch(masked=3)
    real = torch.arange(12) < torch.tensor([12, 9, 12, 5])[:, None]
    batch = batch._replace(attention_mask=real, masked_positions=torch.tensor([0, 13, 40]))
    other = torch.where(real, batch.input_ids, (batch.input_ids + 7) % VOCABULARY)
    losses = [objective(batch._replace(input_ids=i), step=9).loss for i in (batch.input_ids, other)]
    torch.testing.assert_close(*losses)


def test_a_task_needs_tags() -> None:
    with pytest.raises(ConfigError, match=r"lip.tasks names dep, .* \(there are: pos, ner\)"):
        make_objective(tasks=("pos", "ner"))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"pos": 0.0}, "pos = 0.0: a share"),
        ({"dep": 1.5}, "dep = 1.5: a share"),
        ({"ner": float("nan")}, "ner"),
        ({"tasks": ["pos", "pos"]}, "each task once"),
        ({"tasks": ["syntax"]}, "tasks"),
        ({"poss": 1.0}, "did you mean pos"),
    ],
)
def test_configuration_is_checked(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(LipConfig, tree, "lip")


def test_configuration_is_read() -> None:
    lip = parse(LipConfig, {"tasks": ["dep", "pos"], "pos": 1.0}, "lip")
    assert lip.tasks == ("dep", "pos")
    assert (lip.pos, lip.ner, lip.dep) == (1.0, 1 / 3, 1 / 2)
