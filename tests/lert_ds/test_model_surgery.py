"""What is cut against the original with the cut parts at zero."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.model_surgery import Cut, cut, cut_config, expand, kept, renumbering
from lert_ds.modeling_lert import (
    AUTO_CLASSES,
    LertForMaskedLM,
    LertForPreTraining,
    LertForSequenceClassification,
    LertModel,
)

IDS = torch.tensor([[2, 17, 9, 30, 4, 3], [2, 8, 8, 21, 11, 3]])
HEADS = ((True, False, True, True), (False,) * 4, (True,) * 4)
NEURONS = (torch.arange(24) % 3 == 0, torch.ones(24, dtype=torch.bool), torch.arange(24) < 0)


def make_model(seed: int = 0, cls: type[Any] = LertForPreTraining, **changes: Any) -> Any:
    """A tiny model whose every parameter is random, biases and LayerNorms too."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 8,
        "tag_sets": {"pos": ["n", "v", "a"], "dep": ["HED", "ATT"]},
    }
    torch.manual_seed(seed)
    model = cls(LertConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def outputs_of(model: nn.Module, ids: Tensor = IDS) -> list[Tensor]:
    """Every tensor that a model of any class gives."""
    found: list[Tensor] = []
    for value in model(ids).values():
        found.extend(value.values() if isinstance(value, dict) else [value])
    assert found
    return found


@torch.no_grad()
def with_zeros(model: Any, shape: Cut) -> Any:
    """A copy of `model` in which what `shape` cuts is silenced or taken out of the loop."""
    masked = copy.deepcopy(model)
    layers = masked.base_model.encoder.layer
    for number, layer in enumerate(layers):
        if shape.heads is not None:
            for head, stays in enumerate(shape.heads[number]):
                if not stays:
                    layer.attention.output.dense.weight[:, 4 * head : 4 * head + 4] = 0
        if shape.neurons is not None:
            layer.output.dense.weight[:, ~shape.neurons[number]] = 0
    if shape.layers is not None:
        masked.base_model.encoder.layer = nn.ModuleList(layers[number] for number in shape.layers)
    return masked


def agree(ours: Any, wanted: Any) -> None:
    for one, other in zip(outputs_of(ours), outputs_of(wanted), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@st.composite
def shapes(draw: st.DrawFn) -> Cut:
    def mask(size: int) -> list[bool]:
        return draw(st.lists(st.booleans(), min_size=size, max_size=size))

    chosen = sorted(draw(st.sets(st.integers(0, 2), min_size=1)))
    return Cut(
        heads=draw(st.one_of(st.none(), st.just(tuple(tuple(mask(4)) for _ in range(3))))),
        neurons=draw(
            st.one_of(st.none(), st.just(tuple(torch.tensor(mask(24)) for _ in range(3))))
        ),
        layers=draw(st.one_of(st.none(), st.just(tuple(chosen)))),
    )


@settings(max_examples=20, deadline=None)
@given(shapes())
def test_what_is_expanded_computes_what_the_cut_one_does(shape: Cut) -> None:
    shape = Cut(shape.heads, shape.neurons)
    model = make_model()
    smaller = cut(model, shape)
    whole = expand(smaller, model, shape)
    assert whole.config.to_dict() == model.config.to_dict()
    agree(whole, smaller)
    if smaller.num_parameters() < model.num_parameters():
        assert any((weight == 0).all(-1).any() for weight in whole.parameters())
    # Back again, to the bit: nothing of the cut one was lost on the way.
    for one, other in zip(cut(whole, shape).parameters(), smaller.parameters(), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_what_is_cut_out_is_what_is_zero(shape: Cut) -> None:
    model = make_model()
    smaller = cut(model, shape)
    agree(smaller, with_zeros(model, shape))
    left = kept(model.config, shape)
    layers = smaller.bert.encoder.layer
    assert len(layers) == len(left.layers)
    for layer, heads, neurons in zip(layers, left.heads, left.neurons, strict=True):
        assert layer.attention.self.num_attention_heads == len(heads)
        assert layer.attention.output.dense.in_features == 4 * len(heads)
        assert layer.intermediate.dense.out_features == len(neurons)
        assert layer.output.dense.in_features == len(neurons)
    # ZeRO-3 gathers no parameter without elements.
    assert all(parameter.numel() for parameter in smaller.parameters())


@pytest.mark.parametrize("cls", AUTO_CLASSES.values())
def test_every_class_is_cut_and_reloads(cls: type[Any], tmp_path: Path) -> None:
    model = make_model(cls=cls, num_labels=2)
    smaller = cut(model, Cut(HEADS, NEURONS, (0, 1)))
    assert type(smaller) is cls
    agree(smaller, with_zeros(model, Cut(HEADS, NEURONS, (0, 1))))
    smaller.save_pretrained(tmp_path)
    again, facts = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not facts["missing_keys"] | facts["unexpected_keys"] | facts["mismatched_keys"]
    for one, other in zip(outputs_of(again.eval()), outputs_of(smaller), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("cls", AUTO_CLASSES.values())
@pytest.mark.parametrize("shape", [{}, {"layer_attention_heads": [4, 0, 2]}])
def test_nothing_to_cut_is_the_original_to_the_bit(cls: type[Any], shape: dict[str, Any]) -> None:
    model = make_model(cls=cls, **shape)
    same = cut(model, Cut())
    assert same.config == model.config
    assert same.config is not model.config
    ours, theirs = same.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
    for one, other in zip(outputs_of(same), outputs_of(model), strict=True):
        assert torch.equal(one, other)


def test_the_original_stays_as_it_is() -> None:
    model = make_model().requires_grad_(False)
    before, config = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config)
    smaller = cut(model, Cut(HEADS, NEURONS, (0, 2), torch.arange(0, 40, 2)))
    same = cut(model, Cut())
    for ours in (smaller, same):
        assert all(parameter.requires_grad for parameter in ours.parameters())
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.zero_()
    assert model.config == config
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_type_and_mode_stay_and_no_random_number_is_drawn() -> None:
    model = make_model(attn_implementation="eager").bfloat16().train()
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    smaller = cut(model, Cut(HEADS))
    assert torch.equal(torch.rand(3), wanted)
    assert smaller.training
    assert all(parameter.dtype is torch.bfloat16 for parameter in smaller.parameters())
    assert smaller.config._attn_implementation == "eager"
    assert not cut(model.eval(), Cut()).training


def test_a_cut_model_is_cut_again_in_its_own_terms() -> None:
    model = make_model()
    once = cut(model, Cut(HEADS, NEURONS, pieces=torch.arange(0, 40, 2)))
    again = Cut(
        heads=((False, True, True), (), (True, False, True, False)),
        neurons=(torch.arange(8) > 2, torch.arange(24) < 7, torch.zeros(0, dtype=torch.bool)),
        layers=(0, 2),
        pieces=torch.arange(0, 20, 5),
    )
    twice = cut(once, again)
    neurons = [mask.clone() for mask in NEURONS]
    neurons[0][neurons[0].nonzero()[:3, 0]] = False
    at_once = Cut(
        heads=((False, False, True, True), (False,) * 4, (True, False, True, False)),
        neurons=tuple(neurons),
        layers=(0, 2),
        pieces=torch.arange(0, 40, 10),
    )
    wanted = cut(model, at_once)
    assert twice.config == wanted.config
    for name, weight in wanted.state_dict().items():
        assert torch.equal(twice.state_dict()[name], weight), name


@pytest.mark.parametrize("cls", [LertForPreTraining, LertForMaskedLM])
@pytest.mark.parametrize("tied", [True, False])
def test_a_smaller_vocabulary_gives_the_same_logits(cls: type[Any], tied: bool) -> None:
    model = make_model(cls=cls, tie_word_embeddings=tied)
    pieces = torch.tensor([0, 2, 3, 4, 8, 9, 11, 17, 21, 30, 39])
    smaller = cut(model, Cut(pieces=pieces))
    ids = renumbering(pieces, 40, unknown_id=4)[IDS]
    assert int(ids.max()) < len(pieces) == smaller.config.vocab_size
    assert torch.equal(pieces[ids], IDS)
    wanted = outputs_of(model)
    wanted[0] = wanted[0][..., pieces]
    for one, other in zip(outputs_of(smaller, ids), wanted, strict=True):
        torch.testing.assert_close(one, other)
    decoder, words = smaller.cls.predictions.decoder, smaller.bert.embeddings.word_embeddings
    assert (decoder.weight is words.weight) is tied
    assert (decoder.bias is smaller.cls.predictions.bias) is tied


@pytest.mark.parametrize("cls", [LertModel, LertForSequenceClassification])
def test_a_model_without_a_decoder_loses_pieces_too(cls: type[Any]) -> None:
    model, pieces = make_model(cls=cls), torch.unique(torch.cat([IDS.flatten(), torch.zeros(1)]))
    smaller = cut(model, Cut(pieces=pieces.long()))
    ids = renumbering(pieces.long(), 40, unknown_id=2)[IDS]
    for one, other in zip(outputs_of(smaller, ids), outputs_of(model), strict=True):
        torch.testing.assert_close(one, other)


def test_the_ids_that_the_configuration_names_are_renumbered() -> None:
    config = make_model(pad_token_id=5, bos_token_id=7, eos_token_id=9).config
    smaller = cut_config(config, Cut(pieces=torch.tensor([0, 5, 9, 30])))
    assert smaller.pad_token_id == 1
    assert smaller.bos_token_id is None
    assert smaller.eos_token_id == 2
    assert (config.pad_token_id, config.bos_token_id, config.vocab_size) == (5, 7, 40)
    model = cut(make_model(pad_token_id=5), Cut(pieces=torch.tensor([0, 5, 9, 30])))
    assert model.bert.embeddings.word_embeddings.padding_idx == 1


@pytest.mark.parametrize(
    ("shape", "heads", "sizes", "common"),
    [
        (Cut(), None, None, 24),
        (Cut(layers=(1,)), None, None, 24),
        # The size of a head is hidden_size / num_attention_heads: that number cannot change.
        (Cut(heads=((True, False, True, False),) * 3), [2, 2, 2], None, 24),
        (Cut(heads=HEADS, layers=(2,)), None, None, 24),
        (Cut(heads=HEADS, layers=(0, 2)), [3, 4], None, 24),
        (Cut(neurons=(NEURONS[0],) * 3), None, None, 8),
        (Cut(neurons=NEURONS), None, [8, 24, 0], 24),
        (Cut(neurons=NEURONS, layers=(0,)), None, None, 8),
        # With intermediate_size = 0 there would be parameters without elements.
        (Cut(neurons=NEURONS, layers=(2,)), None, [0], 24),
    ],
)
def test_the_configuration_is_as_plain_as_the_shape(
    shape: Cut, heads: list[int] | None, sizes: list[int] | None, common: int
) -> None:
    config = cut_config(make_model().config, shape)
    assert config.layer_attention_heads == heads
    assert config.layer_intermediate_sizes == sizes
    assert config.intermediate_size == common
    assert config.num_attention_heads == 4
    layers = 3 if shape.layers is None else len(shape.layers)
    assert config.num_hidden_layers == layers
    assert cut(make_model(), shape).config == config


def test_an_even_model_that_was_uneven_says_one_size() -> None:
    uneven = make_model(layer_intermediate_sizes=[24, 8, 8], layer_attention_heads=[2, 4, 4])
    even = cut(uneven, Cut(layers=(1, 2)))
    assert even.config.layer_intermediate_sizes is None
    assert even.config.intermediate_size == 8
    assert even.config.layer_attention_heads is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Cut(layers=()), "layers: none is left"),
        (Cut(layers=(0, 3)), r"layers = \[0, 3\]: the model has 3"),
        (Cut(layers=(-1,)), r"layers = \[-1\]"),
        (Cut(layers=(1, 0)), "rising"),
        (Cut(layers=(1, 1)), "rising"),
        (Cut(heads=HEADS[:2]), "heads: a mask for 2 layers, but the model has 3"),
        (Cut(heads=(*HEADS[:2], (True,) * 3)), r"heads: the mask of layer 2 .* the layer has 4"),
        (Cut(neurons=NEURONS[1:]), "neurons: a mask for 2 layers"),
        (Cut(neurons=(torch.arange(24),) * 3), r"the mask of layer 0 \(from 0\) is torch\.int64"),
        (Cut(neurons=(NEURONS[0][1:], *NEURONS[1:])), r"\[23\], but the layer has 24"),
        (Cut(pieces=torch.arange(0)), "at least one"),
        (Cut(pieces=torch.tensor([0.0, 1.0])), "float32"),
        (Cut(pieces=torch.tensor([0, 2, 2])), "rise, from 0 to 39"),
        (Cut(pieces=torch.tensor([0, 40])), "rise, from 0 to 39"),
        (Cut(pieces=torch.tensor([-1, 0])), "rise, from 0 to 39"),
        (Cut(pieces=torch.tensor([1, 2])), r"\[PAD\], id 0, has to stay"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape: Cut, message: str) -> None:
    model = make_model()
    for refused in (lambda: cut(model, shape), lambda: cut_config(model.config, shape)):
        with pytest.raises(ConfigError, match=message):
            refused()


def test_renumbering_sends_what_is_cut_to_unknown() -> None:
    assert renumbering(torch.tensor([0, 2, 3, 7]), 9, unknown_id=2).tolist() == [
        0, 1, 1, 2, 1, 1, 1, 3, 1,
    ]  # fmt: skip
    for unknown in (1, 8):
        with pytest.raises(AssertionError):
            renumbering(torch.tensor([0, 2, 3, 7]), 9, unknown_id=unknown)
