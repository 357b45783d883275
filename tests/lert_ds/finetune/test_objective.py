"""The losses, held to those that transformers' own models compute from the same labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.finetune.batches import TaskBatch, collate
from lert_ds.finetune.features import UNKNOWN, Feature
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.objective import FinetuneObjective
from lert_ds.finetune.seed_run import label_names, load
from lert_ds.finetune.tasks import TASKS, Kind

TASK_OF: dict[Kind, str] = {"classification": "ocnli", "entities": "msra", "spans": "cmrc2018"}
KIND_NAMES: list[Kind] = list(KINDS)


def batch_of(
    kind: Kind, *, known: bool = True, lengths: tuple[int, ...] = (9, 14, 11)
) -> TaskBatch:
    generator = np.random.default_rng(0)
    features = []
    for number, length in enumerate(lengths):
        ids = generator.integers(5, 60, length).astype(np.int32)
        labels: Any = number % 3
        if kind == "entities":
            labels = generator.integers(0, 7, length)
            labels[[0, 3, -1]] = UNKNOWN
        elif kind == "spans":
            labels = (4, 6) if number else (0, 0)
        features.append(Feature(ids, length // 2, labels, number))
    batch = collate(features, range(len(features)), 0)
    return batch if known else batch._replace(labels=torch.full_like(batch.labels, UNKNOWN))


@pytest.fixture
def objective_of(tiny_model: Path) -> Callable[[Kind], FinetuneObjective]:
    """A kind of task → the tiny model to train for it."""

    def make(kind: Kind) -> FinetuneObjective:
        torch.manual_seed(1)
        return FinetuneObjective(load(str(tiny_model), TASKS[TASK_OF[kind]]), kind)

    return make


def of_transformers(kind: Kind, ours: nn.Module, config: LertConfig) -> Any:
    """The class of transformers for a kind of task, with our weights."""
    name = {
        "classification": "BertForSequenceClassification",
        "entities": "BertForTokenClassification",
        "spans": "BertForQuestionAnswering",
    }[kind]
    plain = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        num_labels=config.num_labels,
    )
    model = getattr(transformers, name)(plain)
    model.load_state_dict(ours.state_dict())
    return model.eval()


def labels_for(kind: Kind, batch: TaskBatch) -> dict[str, Tensor]:
    if kind != "spans":
        return {"labels": batch.labels}
    return dict(zip(("start_positions", "end_positions"), batch.labels.unbind(-1), strict=True))


@pytest.mark.parametrize(
    ("kind", "padded"),
    # transformers lets padding be an answer: see the next test
    [(kind, False) for kind in KIND_NAMES] + [("classification", True), ("entities", True)],
)
def test_loss_and_gradients_are_those_of_transformers(
    objective_of: Any, kind: Kind, padded: bool
) -> None:
    objective = objective_of(kind).eval()
    reference = of_transformers(kind, objective.model, objective.model.config)
    batch = batch_of(kind) if padded else batch_of(kind, lengths=(12, 12, 12))
    assert (batch.attention_mask is not None) == padded
    loss = objective(batch, step=0).loss
    expected = reference(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
        **labels_for(kind, batch),
    ).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in objective.model.named_parameters():
        if parameter.grad is None:
            assert wanted[name].grad is None, name
        else:
            assert torch.allclose(parameter.grad, wanted[name].grad, atol=1e-6), name


def test_padding_is_no_answer(objective_of: Any) -> None:
    """A row's loss is the same, padded to a longer neighbour or alone."""
    objective = objective_of("spans").eval()
    together = objective(batch_of("spans"), step=0)
    alone = [objective(batch_of("spans", lengths=(9,)), step=0).metrics["loss"]]
    generator = np.random.default_rng(0)
    generator.integers(5, 60, 9)
    for length in (14, 11):
        ids = generator.integers(5, 60, length).astype(np.int32)
        row = collate([Feature(ids, length // 2, (4, 6), 0)], [0], 0)
        alone.append(objective(row, step=0).metrics["loss"])
    assert together.metrics["loss"][0].item() == pytest.approx(
        sum(one[0].item() for one in alone), rel=1e-5
    )
    starts = together.answers[1]
    assert (starts[0, 9:] <= -1e4).all()
    assert (starts[0, :9].abs() < 100).all()


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_batch_without_a_label_adds_nothing_and_gradients_still_flow(
    objective_of: Any, kind: Kind
) -> None:
    objective = objective_of(kind).train()
    output = objective(batch_of(kind, known=False), step=0)
    assert output.loss.item() == 0
    assert output.metrics["loss"].tolist() == [0, 0]
    output.loss.backward()
    head = [p for n, p in objective.named_parameters() if n.startswith(("model.cl", "model.qa"))]
    assert head
    for parameter in head:
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_answers_are_of_evaluation_alone(objective_of: Any, kind: Kind) -> None:
    objective, batch = objective_of(kind), batch_of(kind)
    assert objective.train()(batch, step=0).answers == ()
    features, *logits = objective.eval()(batch, step=0).answers
    assert torch.equal(features, batch.features)
    assert [tuple(one.shape) for one in logits] == {
        "classification": [(3, 3)], "entities": [(3, 16, 7)], "spans": [(3, 16), (3, 16)],
    }[kind]  # fmt: skip
    assert not any(one.requires_grad for one in logits)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_metrics_add_up_over_micro_batches(objective_of: Any, kind: Kind) -> None:
    objective, batch = objective_of(kind).eval(), batch_of(kind)
    whole = objective(batch, step=0).metrics
    parts = [
        objective(TaskBatch(*(None if t is None else t[k : k + 1] for t in batch)), step=0).metrics
        for k in range(3)
    ]
    assert set(whole) == ({"loss"} if kind == "spans" else {"loss", "accuracy"})
    for name, value in whole.items():
        total = torch.stack([part[name] for part in parts]).sum(0)
        assert torch.allclose(value, total, rtol=1e-5), name
    if kind != "spans":
        known = batch.labels != UNKNOWN
        logits = objective(batch, step=0).answers[1]
        hits = ((logits.argmax(-1) == batch.labels) & known).sum()
        assert whole["accuracy"].tolist() == [hits, known.sum()]


def test_the_summary_adds_nothing(objective_of: Any) -> None:
    assert objective_of("spans").summary({"loss": 1.0}) == {"loss": 1.0}


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_loss_in_half_precision_is_computed_in_single(objective_of: Any, kind: Kind) -> None:
    objective = objective_of(kind).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(batch_of(kind), step=0)
    assert output.loss.dtype == torch.float32
    exact = objective(batch_of(kind), step=0)
    assert output.loss.item() == pytest.approx(exact.loss.item(), abs=0.05)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_model_has_the_tasks_labels_and_the_encoders_weights(
    objective_of: Any, tiny_model: Path, kind: Kind
) -> None:
    model = objective_of(kind).model
    names = label_names(TASKS[TASK_OF[kind]])
    assert isinstance(model, KINDS[kind].model)
    assert {key: getattr(model.config, key) for key in names} == names
    before, _ = model_dir.load(tiny_model, KINDS[kind].model)
    for name, weight in model.bert.named_parameters():
        if "pooler" not in name:
            assert torch.equal(weight, before.bert.get_parameter(name)), name
