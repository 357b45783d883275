"""Layers that matter by construction, and scores against models that really lack the layer."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.labels import IGNORE_INDEX
from lert_ds.model_surgery import Cut, cut
from lert_ds.modeling_lert import LertForPreTraining, LertForSequenceClassification
from lert_ds.objective import Batch
from prune.layer_choice import MEASURES, Measure, choose_layers, layers_without, measure_layers

TAGS = {"pos": ["n", "v", "a"], "dep": ["HED", "ATT"]}


def make_model(cls: type[Any] = LertForPreTraining, seed: int = 0, **changes: Any) -> Any:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        "tag_sets": TAGS,
    }
    torch.manual_seed(seed)
    model = cls(LertConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_batches() -> list[Batch]:
    """Three batches of unequal size, one of them without padding."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size, padded in ((3, True), (5, False), (2, True)):
        ids = torch.randint(5, 40, (size, 12), generator=generator)
        lengths = torch.randint(3, 13, (size, 1), generator=generator)
        real = torch.arange(12) < lengths
        positions = torch.arange(0, size * 12, 12)
        tags = {task: torch.randint(len(TAGS[task]), (size,), generator=generator) for task in TAGS}
        tags["pos"][0] = IGNORE_INDEX
        tags["ner"] = torch.zeros_like(tags["pos"])  # the model has no head for it
        labels = ids.flatten()[positions]
        batches.append(Batch(ids, real if padded else None, positions, labels, tags))
    return batches


@torch.no_grad()
def make_idle(model: Any, number: int, share: float = 0.0) -> None:
    """Let a layer give back what it is given, all but `share` of what it did."""
    layer = model.base_model.encoder.layer[number]
    for output in (layer.attention.output, layer.output):
        output.dense.weight *= share
        output.dense.bias *= share
        output.LayerNorm.weight.fill_(1)
        output.LayerNorm.bias.fill_(0)
    before = (
        model.base_model.embeddings.LayerNorm
        if number == 0
        else model.base_model.encoder.layer[number - 1].output.LayerNorm
    )
    before.weight.fill_(1)
    before.bias.fill_(0)


@torch.no_grad()
def labelled_by(model: Any, batches: list[Batch]) -> list[Batch]:
    """The batches with what `model` says as the truth: any change of what it says costs."""
    labelled = []
    for batch in batches:
        output = model(
            batch.input_ids, batch.attention_mask, masked_positions=batch.masked_positions
        )
        tags = {task: logits.argmax(-1) for task, logits in output.tag_logits.items()}
        labelled.append(batch._replace(labels=output.logits.argmax(-1), tags=tags))
    return labelled


@torch.no_grad()
def loss_of(model: Any, batches: list[Batch]) -> float:
    """The sum of the losses of the heads, each a mean over all its known labels."""
    heads: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        output = model(
            batch.input_ids, batch.attention_mask, masked_positions=batch.masked_positions
        )
        labelled = {"mlm": (output.logits, batch.labels)}
        labelled |= {task: (output.tag_logits[task], batch.tags[task]) for task in TAGS}
        for head, (logits, labels) in labelled.items():
            known = labels != IGNORE_INDEX if head != "mlm" else torch.ones_like(labels).bool()
            losses = functional.cross_entropy(logits[known], labels[known], reduction="none")
            heads.setdefault(head, []).append(losses)
    assert heads.keys() == {"mlm", "pos", "dep"}
    return sum(float(torch.cat(losses).mean()) for losses in heads.values())


@torch.no_grad()
def distance_of(one: Any, other: Any, batches: list[Batch]) -> float:
    """1 - the mean cosine of the states that two functions of a batch give, padding aside."""
    distances = []
    for batch in batches:
        cosine = functional.cosine_similarity(one(batch), other(batch), dim=-1)
        real = torch.ones(batch.input_ids.shape).bool()
        distances.append(1 - cosine[real if batch.attention_mask is None else batch.attention_mask])
    return float(torch.cat(distances).mean())


def states_of(model: Any, place: int = -1) -> Callable[[Batch], torch.Tensor]:
    def encode(batch: Batch) -> torch.Tensor:
        states: torch.Tensor = model.base_model(
            batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        ).hidden_states[place]
        return states

    return encode


@pytest.mark.parametrize("gone", [(), (2,)])
def test_scores_are_those_of_models_without_the_layer(gone: tuple[int, ...]) -> None:
    model, batches = make_model(), make_batches()
    present = [number for number in range(4) if number not in gone]

    def without(number: int) -> Any:
        return cut(model, Cut(layers=tuple(n for n in present if n != number)))

    rest = cut(model, Cut(layers=tuple(present)))
    wanted = {
        "loss_change": [
            loss_of(without(number), batches) - loss_of(model, batches) for number in present
        ],
        "hidden_change": [
            distance_of(states_of(model), states_of(without(number)), batches) for number in present
        ],
        "block_influence": [
            distance_of(states_of(rest, place), states_of(rest, place + 1), batches)
            for place in range(len(present))
        ],
    }
    for by in MEASURES:
        scores = measure_layers(model, batches, by, gone)
        assert list(scores) == present
        assert list(scores.values()) == pytest.approx(wanted[by], abs=1e-5), by


@pytest.mark.parametrize("by", MEASURES)
def test_idle_layers_go(by: Measure) -> None:
    for first, second in ((0, 2), (1, 3)):
        model = make_model()
        make_idle(model, first)
        make_idle(model, second, 0.02)
        batches = labelled_by(model, make_batches())
        scores = measure_layers(model, batches, by)
        assert abs(scores[first]) < 1e-5
        rest = tuple(number for number in range(4) if number not in (first, second))
        assert choose_layers(model, batches, 2, by) == rest
        assert set(rest) < set(choose_layers(model, batches, 1, by))
        assert choose_layers(model, batches, 0, by) == (0, 1, 2, 3)


@pytest.mark.parametrize("by", ["hidden_change", "loss_change"])
def test_of_layers_that_go_one_by_one_the_others_are_measured_anew(by: Measure) -> None:
    model, batches = make_model(seed=1), make_batches()
    order = []
    for _ in range(3):
        scores = measure_layers(model, batches, by, order)
        order.append(min(scores, key=scores.__getitem__))
        kept = choose_layers(model, batches, len(order), by)
        assert kept == tuple(number for number in range(4) if number not in order)
    at_once = measure_layers(model, batches, by)
    # Else the test could not tell measuring anew from ranking once.
    assert set(order[:2]) != set(sorted(at_once, key=at_once.__getitem__)[:2])


@pytest.mark.parametrize("by", MEASURES)
def test_the_model_stays_and_dropout_is_out(by: Measure) -> None:
    model, batches = make_model(), make_batches()
    wanted = measure_layers(model, batches, by)
    before = copy.deepcopy(model.state_dict())
    layers = list(model.bert.encoder.layer)
    assert measure_layers(model.train(), batches, by) == wanted
    assert model.training
    assert list(model.bert.encoder.layer) == layers
    assert list(model.state_dict()) == list(before)
    broken = batches[0]._replace(input_ids=torch.full((1, 12), 99))
    with pytest.raises(IndexError):
        measure_layers(model, [broken], by, gone=(1,))
    assert list(model.bert.encoder.layer) == layers


def test_a_pruned_model_and_one_without_heads_of_pretraining() -> None:
    pruned = make_model(layer_attention_heads=[4, 0, 2, 4], layer_intermediate_sizes=[9, 0, 24, 8])
    assert measure_layers(pruned, make_batches(), "block_influence").keys() == {0, 1, 2, 3}
    classifier = make_model(LertForSequenceClassification)
    assert len(choose_layers(classifier, make_batches(), 2, "hidden_change")) == 2
    with pytest.raises(ConfigError, match="measure layers by hidden_change"):
        choose_layers(classifier, make_batches(), 2, "loss_change")


@pytest.mark.parametrize("by", MEASURES)
def test_without_text_nothing_is_chosen(by: Measure) -> None:
    with pytest.raises(ConfigError, match=f"{by}: there is no text"):
        choose_layers(make_model(), [], 1, by)


def test_too_many_layers_cannot_go() -> None:
    for drop in (4, 5):
        with pytest.raises(ConfigError, match=f"drops {drop} layers of 4; at most 3 can go"):
            choose_layers(make_model(), make_batches(), drop, "block_influence")


def test_a_list_of_layers_is_checked() -> None:
    assert layers_without([], 3) == (0, 1, 2)
    assert layers_without([3, 1], 4) == (1, 3)
    assert layers_without([2], 2) == (0,)
    for dropped, message in (
        ([0], "names layer 0, but the model has 3; name layers from 1 to 3"),
        ([1, 4], "names layer 4"),
        ([2, 2], r"drop_layers = \[2, 2\]: name each layer once"),
        ([1, 2, 3], "drops 3 layers of 3; at most 2 can go"),
    ):
        with pytest.raises(ConfigError, match=message):
            layers_without(dropped, 3)
