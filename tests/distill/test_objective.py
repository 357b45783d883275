"""The whole loss against its formula, written out: every key of the configuration moves it."""

from collections.abc import Sequence
from typing import Any

import pytest
import textbrewer
import torch
from torch import Tensor
from torch.nn import functional

from distill.adaptor import PretrainingAdaptor
from distill.distillation_config import DistillationConfig
from distill.matches import resolve
from distill.objective import DistillationObjective
from distill.teacher import Teacher
from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.labels import IGNORE_INDEX
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LertLoss, LipConfig, PretrainingObjective
from lert_ds.train.metrics import MetricSums

VOCABULARY = 45
TAGS = {"pos": list("abcde"), "ner": list("abc"), "dep": list("abcd")}
STEPS = 100


def make_model(seed: int, **changes: Any) -> LertForPreTraining:
    shape = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
             "intermediate_size": 32} | changes  # fmt: skip
    torch.manual_seed(seed)
    model = LertForPreTraining(
        LertConfig(
            vocab_size=VOCABULARY, max_position_embeddings=16, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, initializer_range=0.4, tag_sets=TAGS, **shape,
        )
    )  # fmt: skip
    return model.eval()


def make_batch(padding: int = 3, masked: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    real = torch.ones(2, 10, dtype=torch.bool)
    real[1, 10 - padding :] = False
    tags = {task: draw(len(classes), masked) for task, classes in TAGS.items()}
    if masked:
        tags["ner"][0] = IGNORE_INDEX
    return Batch(
        input_ids=draw(VOCABULARY, 2, 10),
        attention_mask=real if padding else None,
        masked_positions=torch.randperm(16, generator=generator)[:masked].sort().values,
        labels=draw(VOCABULARY, masked),
        tags=tags,
    )


TEACHER = make_model(1)
STUDENT = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}


def make_objective(
    keys: dict[str, Any],
    teachers: Sequence[tuple[LertForPreTraining, float]] = ((TEACHER, 1.0),),
    student: LertForPreTraining | None = None,
    labels_only: bool = False,
) -> DistillationObjective:
    student = student or make_model(2, **STUDENT)
    config = parse(DistillationConfig, keys, "test")
    config = resolve(config, student.config, [model.config for model, _ in teachers])
    loss = LertLoss(LipConfig(), STEPS)
    weights = {task: getattr(config, task) for task in TAGS if getattr(config, task)}
    torch.manual_seed(5)
    objective = DistillationObjective(
        student,
        [Teacher("teacher", model, weight) for model, weight in teachers],
        config,
        PretrainingAdaptor(loss, weights),
        STEPS,
        labels_only=labels_only,
    )
    return objective.train()


def logits_of(model: LertForPreTraining, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            masked_positions=batch.masked_positions,
        )
    return {"mlm": output.logits, **output.tag_logits}


@torch.no_grad()
def loss_of(objective: DistillationObjective, batch: Batch, step: int) -> float:
    return float(objective(batch, step=step).loss)


def hard_loss(objective: DistillationObjective, batch: Batch, step: int) -> float:
    pretraining = PretrainingObjective(objective.student, LipConfig(), STEPS)
    return float(pretraining(batch, step=step).loss.detach())


def cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> float:
    wanted = (teacher / temperature).softmax(-1)
    return float(-(wanted * (student / temperature).log_softmax(-1)).sum(-1).mean())


def kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    entropy = cross_entropy(teacher, teacher, temperature)
    return cross_entropy(student, teacher, temperature) - entropy


def mse(student: Tensor, teacher: Tensor, temperature: float) -> float:
    return float(((student - teacher) / temperature).square().mean())


KD = {"ce": cross_entropy, "mse": mse, "kl": kl}
MLM_ALONE = {"pos": 0.0, "ner": 0.0, "dep": 0.0}


@pytest.mark.parametrize("kind", ["ce", "mse", "kl"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("squared", [False, True])
def test_kd_is_its_formula(kind: str, temperature: float, squared: bool) -> None:
    batch = make_batch()
    objective = make_objective(
        {"kd_loss_type": kind, "temperature": temperature, "temperature_squared": squared,
         "kd_loss_weight": 0.7} | MLM_ALONE
    )  # fmt: skip
    found = loss_of(objective, batch, 0)
    student, teacher = (logits_of(m, batch)["mlm"] for m in (objective.student, TEACHER))
    expected = 0.7 * KD[kind](student, teacher, temperature)
    assert found == pytest.approx(expected * (temperature**2 if squared else 1), rel=1e-5)


def test_each_tasks_kd_has_its_weight_and_follows_the_lip_schedule() -> None:
    batch, step = make_batch(), 10
    objective = make_objective({"kd_loss_type": "kl", "pos": 2.0, "ner": 0.5, "dep": 0.0})
    output = objective(batch, step=step)
    student, teacher = logits_of(objective.student, batch), logits_of(TEACHER, batch)
    lip = {"mlm": 1.0, "pos": 2.0 * step / (STEPS / 6), "ner": 0.5 * step / (STEPS / 3)}
    expected = sum(w * kl(student[head], teacher[head], 4.0) for head, w in lip.items())
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert "kd/dep" not in output.metrics
    total, count = output.metrics["kd/pos"].tolist()
    assert total / count == pytest.approx(kl(student["pos"], teacher["pos"], 4.0), rel=1e-5)


def test_hard_labels_have_their_weight() -> None:
    batch = make_batch()
    objective = make_objective({"kd_loss_weight": 0.0, "hard_label_weight": 0.3})
    found = loss_of(objective, batch, 20)
    assert found == pytest.approx(0.3 * hard_loss(objective, batch, 20), rel=1e-6)


@pytest.mark.parametrize(
    ("kd_scheduler", "hard_scheduler", "kd_factor", "hard_factor"),
    [
        ("none", "none", 1, 1),
        ("linear_decay", "linear_growth", 0.75, 0.25),
        ("linear_growth", "linear_decay", 0.25, 0.75),
    ],
)
def test_schedulers_multiply_the_weights(
    kd_scheduler: str, hard_scheduler: str, kd_factor: float, hard_factor: float
) -> None:
    batch = make_batch()
    keys = {"kd_loss_weight": 2.0, "hard_label_weight": 3.0, **MLM_ALONE}
    objective = make_objective(
        keys
        | {"kd_loss_weight_scheduler": kd_scheduler, "hard_label_weight_scheduler": hard_scheduler}
    )
    found = loss_of(objective, batch, 25)
    student, teacher = (logits_of(m, batch)["mlm"] for m in (objective.student, TEACHER))
    expected = 2.0 * kd_factor * cross_entropy(student, teacher, 4.0)
    expected += 3.0 * hard_factor * hard_loss(objective, batch, 25)
    assert found == pytest.approx(expected, rel=1e-5)


def test_flsw_gives_each_position_a_temperature() -> None:
    batch = make_batch()
    keys = {"kd_loss_type": "kl", "temperature_scheduler": ["flsw", 1.5, 2.0], **MLM_ALONE}
    objective = make_objective(keys)
    student, teacher = (logits_of(m, batch)["mlm"] for m in (objective.student, TEACHER))
    alike = functional.cosine_similarity(student, teacher, dim=-1)
    gap = (1 - alike) ** 2.0
    temperatures = 4.0 + (gap.mean() - gap) * 1.5
    rows = zip(student, teacher, temperatures.tolist(), strict=True)
    expected = sum(kl(s[None], t[None], degree) for s, t, degree in rows) / len(student)
    assert loss_of(objective, batch, 0) == pytest.approx(expected, rel=1e-3)
    constant = make_objective(keys | {"temperature_scheduler": "constant"})
    found = loss_of(constant, batch, 0)
    assert found == pytest.approx(kl(student, teacher, 4.0), rel=1e-5)


def test_probability_shift_makes_the_label_the_teachers_first_choice() -> None:
    batch = make_batch()
    objective = make_objective({"probability_shift": True, "temperature": 1.0})
    found = loss_of(objective, batch, STEPS)
    student, teacher = logits_of(objective.student, batch), logits_of(TEACHER, batch)
    expected = 0.0
    for head, labels in {"mlm": batch.labels, **batch.tags}.items():
        shifted = teacher[head].clone()
        for row, label in enumerate(labels.tolist()):
            if head == "mlm" or label != IGNORE_INDEX:
                first = int(shifted[row].argmax())
                shifted[row, [first, label]] = shifted[row, [label, first]].clone()
        expected += cross_entropy(student[head], shifted, 1.0)
    assert found == pytest.approx(expected, rel=1e-5)


HIDDEN = ["hidden_mse", "cos", "pkd", "fsp", "gram", "nst", "mmd"]
ATTENTION = ["attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"]


def observed(model: LertForPreTraining, batch: Batch) -> Any:
    """What transformers gives by its slow ways."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model.bert(
            batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True,
            output_attentions=True,
        )  # fmt: skip
    model.set_attn_implementation("sdpa")
    return found


def match_alone(**match: Any) -> dict[str, Any]:
    return {"kd_loss_weight": 0.0, "intermediate_matches": [match]}


@pytest.mark.parametrize("loss", HIDDEN)
@pytest.mark.parametrize("padding", [0, 3])
def test_a_hidden_match_is_textbrewers_loss_of_the_layers(loss: str, padding: int) -> None:
    batch = make_batch(padding)
    student = make_model(2, num_hidden_layers=2)  # as wide as the teacher: no projection
    pair = loss in ("fsp", "gram", "nst", "mmd")
    layers = ([1, 3], [0, 2]) if pair else (3, 2)
    objective = make_objective(
        match_alone(feature="hidden", loss=loss, weight=2.5, layer_T=layers[0], layer_S=layers[1]),
        student=student,
    )
    found = loss_of(objective, batch, 0)
    sides = [observed(m, batch).hidden_states for m in (student, TEACHER)]
    mask = torch.ones(2, 10) if batch.attention_mask is None else batch.attention_mask
    chosen = [
        [states[layer] for layer in side] if isinstance(side, list) else states[side]
        for states, side in zip(sides, layers[::-1], strict=True)
    ]
    expected = float(textbrewer.MATCH_LOSS_MAP[loss](*chosen, mask=mask))
    assert expected > 0
    assert found == pytest.approx(2.5 * expected, rel=1e-4)


@pytest.mark.parametrize("loss", ATTENTION)
@pytest.mark.parametrize("padding", [0, 3])
def test_an_attention_match_compares_probabilities(loss: str, padding: int) -> None:
    batch = make_batch(padding)
    student = make_model(2, num_hidden_layers=2, hidden_size=8, num_attention_heads=4)
    objective = make_objective(
        match_alone(feature="attention", loss=loss, weight=3.0, layer_T=-1, layer_S=0),
        student=student,
    )
    found = loss_of(objective, batch, 0)
    ours, theirs = observed(student, batch).attentions[0], observed(TEACHER, batch).attentions[2]
    real = torch.ones(2, 10) if batch.attention_mask is None else batch.attention_mask.float()
    if loss == "attention_ce_mean":
        ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    if loss.startswith("attention_ce"):
        rows = -torch.where(theirs > 0, theirs * ours.log(), 0).sum(-1)  # [batch, heads, length]
        expected = float((rows * real[:, None]).sum() / (real.sum() * ours.shape[1]))
    else:
        if loss == "attention_mse_sum":
            ours, theirs = ours.sum(1, keepdim=True), theirs.sum(1, keepdim=True)
        both = real[:, None, :, None] * real[:, None, None, :]
        pairs = real.sum(1).square().sum() * ours.shape[1]
        expected = float(((ours - theirs).square() * both).sum() / pairs)
    assert found == pytest.approx(3.0 * expected, rel=1e-4)


def test_relations_need_neither_equal_widths_nor_equal_heads() -> None:
    batch = make_batch()
    match = {"feature": "qkv", "loss": "minilm_relation", "layer_T": 1, "layer_S": -1}
    objective = make_objective(match_alone(**match) | {"relation_heads": 2})
    found = loss_of(objective, batch, 0)
    real, expected = batch.attention_mask, 0.0
    assert real is not None
    for name in ("query", "key", "value"):
        relations = []
        for model, layer in ((objective.student, 1), (TEACHER, 1)):
            states = observed(model, batch).hidden_states[layer]
            projected = getattr(model.bert.encoder.layer[layer].attention.self, name)(states)
            split = projected.unflatten(-1, (2, -1)).transpose(1, 2)  # [batch, 2, length, size]
            scores = split @ split.mT / split.shape[-1] ** 0.5
            relations.append(scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1))
        ours, theirs = relations
        rows = torch.where(theirs > 0, theirs * (theirs / ours).log(), 0).sum(-1)
        expected += float((rows * real[:, None]).sum() / (2 * real.sum()))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["linear", "relu", "tanh"])
def test_a_projection_is_trained_with_the_student(kind: str) -> None:
    batch = make_batch()
    objective = make_objective(
        match_alone(feature="hidden", loss="hidden_mse", layers="uniform", proj=kind)
    )
    assert len(objective.projections) == 2
    loss = objective(batch, step=0).loss
    loss.backward()
    act = {"linear": lambda x: x, "relu": torch.relu, "tanh": torch.tanh}[kind]
    ours, theirs = (observed(m, batch).hidden_states for m in (objective.student, TEACHER))
    expected = 0.0
    # 3 layers for 2: layer 1 to 1.5, rounded up, and 2 to 3
    for projection, (layer_t, layer_s) in zip(objective.projections, [(2, 1), (3, 2)], strict=True):
        weight, bias = projection.parameters()
        projected = act(ours[layer_s] @ weight.detach().T + bias.detach())
        mask = batch.attention_mask
        assert mask is not None
        expected += float((projected - theirs[layer_t])[mask].square().mean())
        assert weight.grad is not None
        assert float(weight.grad.norm()) > 0
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    names = {name.split(".")[0] for name, _ in objective.named_parameters()}
    assert names == {"student", "projections"}


def test_a_projection_may_have_its_own_rate() -> None:
    match = {"feature": "hidden", "loss": "hidden_mse", "layer_T": 3, "layer_S": 2}
    with_rate = {**match, "proj": ["linear", 8, 16, {"lr": 5e-3, "weight_decay": 0.0}]}
    plain = {**match, "layer_T": 1, "layer_S": 1, "proj": "linear"}
    objective = make_objective({"intermediate_matches": [plain, with_rate]})
    assert objective.parameter_options(1e-3) == {"projections.1": (pytest.approx(5.0), 0.0)}


def test_several_teachers_count_by_their_weights() -> None:
    batch = make_batch()
    other = make_model(7, num_hidden_layers=4, hidden_size=24)
    match = {"feature": "hidden", "loss": "nst", "layer_T": [0, 4], "layer_S": [0, 2],
             "teacher": 1}  # fmt: skip
    keys = {"kd_loss_type": "kl", "intermediate_matches": [match], **MLM_ALONE}
    teachers = ((TEACHER, 0.25), (other, 0.5))
    objective = make_objective(keys, teachers)
    output = objective(batch, step=0)
    student = logits_of(objective.student, batch)["mlm"]
    distances = [kl(student, logits_of(model, batch)["mlm"], 4.0) for model, _ in teachers]
    states = [observed(m, batch).hidden_states for m in (objective.student, other)]
    chosen = [[states[0][0], states[0][2]], [states[1][0], states[1][4]]]
    gap = float(textbrewer.MATCH_LOSS_MAP["nst"](*chosen, mask=batch.attention_mask))
    assert float(output.loss.detach()) == pytest.approx(
        0.25 * distances[0] + 0.5 * distances[1] + gap, rel=1e-4
    )
    total, count = output.metrics["kd/mlm"].tolist()
    assert total / count == pytest.approx((distances[0] + 2 * distances[1]) / 3, rel=1e-4)


def test_the_teacher_is_out_of_sight() -> None:
    objective = make_objective({})
    assert all(name.startswith("student.") for name in objective.state_dict())
    teacher = make_model(1)
    teacher.config.hidden_dropout_prob = 0.5
    objective = make_objective({}, [(teacher, 1.0)])
    objective.train()
    assert not teacher.training
    assert all(module is not teacher for module in objective.modules())
    objective(make_batch(), step=0).loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_batch_without_masked_positions_adds_nothing() -> None:
    objective = make_objective({"hard_label_weight": 1.0})
    output = objective(make_batch(masked=0), step=50)
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    assert all(torch.isfinite(pair).all() for pair in output.metrics.values())
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained[:3])


def test_labels_only_is_pretraining() -> None:
    batch = make_batch()
    keys = match_alone(feature="hidden", loss="hidden_mse", layers="uniform", proj="linear")
    objective = make_objective(keys, labels_only=True)
    output = objective(batch, step=30)
    assert float(output.loss.detach()) == pytest.approx(hard_loss(objective, batch, 30), rel=1e-6)
    assert not len(objective.projections)
    assert not any(name.startswith(("kd/", "match/")) for name in output.metrics)


@pytest.mark.parametrize("labels_only", [False, True])
def test_agreement_is_told_in_evaluation(labels_only: bool) -> None:
    batch = make_batch()
    objective = make_objective({}, labels_only=labels_only)
    assert "mlm/kl" not in objective(batch, step=0).metrics
    objective.eval()
    sums = MetricSums()
    sums.add(objective(batch, step=0).metrics)
    values = sums.reduce()
    student, teacher = logits_of(objective.student, batch), logits_of(TEACHER, batch)
    for head in ("mlm", *TAGS):
        assert values[f"{head}/kl"] == pytest.approx(kl(student[head], teacher[head], 1), rel=1e-4)
        same = (student[head].argmax(-1) == teacher[head].argmax(-1)).float().mean()
        assert values[f"{head}/agreement"] == pytest.approx(float(same))
    assert "pos/macro_f1" in values


def test_a_student_that_is_its_teacher_agrees() -> None:
    match = {"feature": "hidden", "loss": "hidden_mse", "layers": "uniform"}
    objective = make_objective(
        {"kd_loss_type": "kl", "intermediate_matches": [match]}, student=make_model(1)
    )
    assert loss_of(objective, make_batch(), 50) == pytest.approx(0, abs=1e-5)
    objective.eval()
    metrics = objective(make_batch(), step=50).metrics
    assert metrics["mlm/agreement"].tolist() == [6, 6]
    assert float(metrics["match/hidden_mse"][0]) == 0


def test_without_kd_a_teacher_computes_what_its_matches_compare_and_no_more() -> None:
    match = {"feature": "hidden", "loss": "hidden_mse", "layer_T": 1, "layer_S": 1,
             "proj": "linear"}  # fmt: skip
    keys = {"kd_loss_weight": 0.0, "hard_label_weight": 1.0, "intermediate_matches": [match]}
    asked = make_objective(keys)
    ran: list[str] = []
    handles = []
    for name in ("bert.encoder.layer.0", "bert.encoder.layer.1", "cls.predictions.decoder"):
        module = TEACHER.get_submodule(name)
        handles.append(module.register_forward_hook(lambda *_, name=name: ran.append(name)))
    batch = make_batch()
    loss = asked(batch, step=3)
    assert ran == ["bert.encoder.layer.0"]
    # The same with KD of hardly any weight, which asks for everything.
    whole = make_objective({**keys, "kd_loss_weight": 1e-12})
    assert float(loss.loss) == pytest.approx(float(whole(batch, step=3).loss), rel=1e-6)
    assert "cls.predictions.decoder" in ran
    assert not any(name.startswith("kd/") for name in loss.metrics)
    assert len(TEACHER.bert.encoder.layer) == 3
    assert "kd/mlm" in asked.eval()(batch, step=3).metrics
    for handle in handles:
        handle.remove()
