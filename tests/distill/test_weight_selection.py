import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.weight_selection import evenly_spaced, head_units, select_weights
from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import LertForPreTraining

TAGS = {"pos": ["n", "v", "a"], "dep": ["HED", "ATT"]}
IDS = torch.tensor([[2, 17, 9, 30, 4, 3], [2, 8, 8, 21, 11, 3]])


def make_model(seed: int, **changes: Any) -> LertForPreTraining:
    """A tiny model whose every parameter is random, biases and LayerNorms too."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 8,
        "tag_sets": TAGS,
    }
    torch.manual_seed(seed)
    model = LertForPreTraining(LertConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def logits_of(model: LertForPreTraining) -> list[Tensor]:
    output = model(IDS)
    return [output.logits, *(output.tag_logits[task] for task in model.config.tasks)]


@given(st.data())
def test_chosen_units_are_as_far_apart_as_may_be(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 300))
    count = data.draw(st.integers(1, total))
    chosen = evenly_spaced(count, total)
    gaps = torch.cat([chosen, torch.tensor([total])]).diff()  # the last one's, to the first's place
    assert chosen[0] == 0
    assert gaps.min() >= max(1, total // count)
    assert gaps.max() <= -(-total // count)


def test_heads_are_taken_whole() -> None:
    ours = make_model(0, hidden_size=8, num_attention_heads=2).config
    theirs = make_model(0, hidden_size=16, num_attention_heads=4).config
    assert head_units(ours, theirs, 4).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    # Of three heads that pruning left, and of heads of eight units.
    assert head_units(ours, theirs, 3).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    wide = make_model(0, hidden_size=16, num_attention_heads=2).config
    assert head_units(ours, wide, 2).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("tied", [True, False])
def test_all_layers_and_all_units_are_the_teacher_to_the_bit(tied: bool) -> None:
    teacher = make_model(1, tie_word_embeddings=tied)
    student = make_model(2, tie_word_embeddings=tied)
    assert not torch.equal(logits_of(student)[0], logits_of(teacher)[0])
    assert select_weights(student, teacher, (1, 2)) == ()
    for ours, theirs in zip(logits_of(student), logits_of(teacher), strict=True):
        assert torch.equal(ours, theirs)


def test_the_chosen_layers_are_taken_in_their_order() -> None:
    teacher = make_model(1, num_hidden_layers=4)
    student = make_model(2, num_hidden_layers=3)
    select_weights(student, teacher, (4, 1, 4))
    layers = teacher.bert.encoder.layer
    teacher.bert.encoder.layer = nn.ModuleList([layers[3], layers[0], layers[3]])
    assert torch.equal(student(IDS).logits, teacher(IDS).logits)


def doubled(small: LertForPreTraining) -> LertForPreTraining:
    """A model with the outputs of `small`, in which every unit, head and neuron is there twice.

    Of the two copies of an input the first is weighed by 1/√2, so that a half which is scaled by √2
    is `small` again, if it is the same half everywhere.
    """
    ours = small.config
    teacher = make_model(
        9,
        hidden_size=2 * ours.hidden_size,
        num_attention_heads=2 * ours.num_attention_heads,
        intermediate_size=2 * ours.intermediate_size,
        tie_word_embeddings=False,
    )
    head_size = ours.hidden_size // ours.num_attention_heads

    def twice(units: int, block: int) -> Tensor:
        return torch.arange(units).view(-1, block).repeat(1, 2).flatten()

    first = 1 / math.sqrt(2)
    for name, target in teacher.named_parameters():
        source = small.get_parameter(name)
        rows = torch.arange(len(source))
        if len(target) > len(source):
            in_heads = any(part in name for part in ("query", "key", "value"))
            rows = twice(len(source), head_size if in_heads else 1)
        weight = source[rows]
        if source.dim() == 2:
            block = head_size if "attention.output" in name else 1
            weight = weight[:, twice(source.shape[1], block)]
            if "embeddings" not in name:
                shares = torch.tensor([first, 1 - first]).repeat_interleave(block)
                weight = weight * shares.repeat(source.shape[1] // block)
        target.data.copy_(weight)
    return teacher


def test_a_narrow_student_takes_the_same_units_in_every_matrix() -> None:
    small = make_model(3, tie_word_embeddings=False)
    teacher = doubled(small)
    for theirs, wanted in zip(logits_of(teacher), logits_of(small), strict=True):
        torch.testing.assert_close(theirs, wanted, atol=1e-5, rtol=1e-4)
    student = make_model(4, tie_word_embeddings=False)
    select_weights(student, teacher, (1, 2))
    for ours, wanted in zip(logits_of(student), logits_of(small), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


def test_tied_word_embeddings_are_scaled_as_the_decoder_that_they_are() -> None:
    teacher, student = make_model(1, hidden_size=32), make_model(2, hidden_size=8)
    select_weights(student, teacher, (1, 2))
    words = student.bert.embeddings.word_embeddings.weight
    assert student.cls.predictions.decoder.weight is words
    torch.testing.assert_close(words, 2 * teacher.bert.embeddings.word_embeddings.weight[:, ::4])
    assert torch.equal(student.cls.predictions.bias, teacher.cls.predictions.bias)
    # Positions and types are scaled with them: the first hidden state is that of plain halves.
    tables = teacher.bert.embeddings
    summed = (
        tables.word_embeddings(IDS)
        + tables.position_embeddings.weight[: IDS.shape[1]]
        + tables.token_type_embeddings.weight[0]
    )[..., ::4]
    norm = tables.LayerNorm
    wanted = nn.functional.layer_norm(summed, (8,), norm.weight[::4], norm.bias[::4], norm.eps)
    torch.testing.assert_close(student.bert.embeddings(IDS), wanted, atol=1e-5, rtol=1e-4)


def deviations(model: LertForPreTraining, ids: Tensor) -> dict[str, float]:
    """What each linear layer gives: its standard deviation, by the layer's name."""
    found: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[name] = output.std().item()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(note(name))
    model(ids)
    return found


def test_the_scale_keeps_the_variance_of_what_every_matrix_gives() -> None:
    shape = {"vocab_size": 300, "tag_sets": {"pos": [f"tag{i}" for i in range(28)]}}
    torch.manual_seed(5)
    wide = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1024}
    narrow = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256}
    # As LERT starts: random weights, no biases.
    teacher = LertForPreTraining(LertConfig(**shape, **wide, num_hidden_layers=2)).eval()
    student = LertForPreTraining(LertConfig(**shape, **narrow, num_hidden_layers=2)).eval()
    select_weights(student, teacher, (1, 2))
    ids = torch.randint(0, 300, (8, 64))
    ours, theirs = deviations(student, ids), deviations(teacher, ids)
    assert len(ours) == 2 * 6 + 3
    for name, deviation in ours.items():
        # It would be half without the scale.
        assert deviation == pytest.approx(theirs[name], rel=0.15), name


def test_a_pruned_layer_gives_what_it_has_left() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    uneven = {"layer_attention_heads": [0, 3], "layer_intermediate_sizes": [0, 36]}
    teacher, student = make_model(1, **sizes, **uneven), make_model(2, num_hidden_layers=1)
    select_weights(student, teacher, (2,))
    ours, theirs = student.bert.encoder.layer[0], teacher.bert.encoder.layer[1]
    heads = [*range(8), *range(8, 16)]  # two of three, of eight units each
    query, their_query = ours.attention.self.query, theirs.attention.self.query
    torch.testing.assert_close(query.weight, math.sqrt(2) * their_query.weight[heads][:, ::2])
    torch.testing.assert_close(query.bias, their_query.bias[heads])
    torch.testing.assert_close(
        ours.attention.output.dense.weight,
        math.sqrt(24 / 16) * theirs.attention.output.dense.weight[::2][:, heads],
    )
    neurons = [3 * i // 2 for i in range(24)]
    torch.testing.assert_close(
        ours.output.dense.weight, math.sqrt(36 / 24) * theirs.output.dense.weight[::2][:, neurons]
    )


def test_a_head_with_other_tags_is_left_as_it_was() -> None:
    teacher = make_model(1)
    student = make_model(2, tag_sets={**TAGS, "pos": ["v", "n", "a"], "ner": ["O"]})
    before = {task: student.tag_head(task).weight.clone() for task in student.config.tasks}
    assert select_weights(student, teacher, (1, 2)) == ("pos", "ner")
    for task in ("pos", "ner"):
        assert torch.equal(student.tag_head(task).weight, before[task])
    assert torch.equal(student.tag_head("dep").weight, teacher.tag_head("dep").weight)
    without_heads = make_model(1, tag_sets=None)
    assert select_weights(student, without_heads, (1, 2)) == ("pos", "ner", "dep")


def test_the_student_shares_nothing_with_a_frozen_teacher() -> None:
    teacher, student = make_model(1).requires_grad_(False), make_model(2)
    before = teacher(IDS).logits
    select_weights(student, teacher, (1, 2))
    assert all(parameter.requires_grad for parameter in student.parameters())
    student(IDS).logits.sum().backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(teacher(IDS).logits, before)
