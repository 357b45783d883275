"""LERT against transformers' BERT, and what BERT does not have."""

import ast
import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertForMaskedLM

from lert_ds import modeling_lert
from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import (
    AUTO_CLASSES,
    LertForMaskedLM,
    LertForPreTraining,
    LertForQuestionAnswering,
    LertForSequenceClassification,
    LertForTokenClassification,
    LertModel,
)

TAGS = {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"], "dep": ["HED", "ATT", "WP", "VOB"]}
UNEVEN = {"layer_attention_heads": [0, 3, 4], "layer_intermediate_sizes": [64, 0, 17]}


def make_config(**changes: Any) -> LertConfig:
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 20,
        "tag_sets": TAGS,
    }
    return LertConfig(**{**sizes, **changes})


def make_model(seed: int = 0, **changes: Any) -> LertForPreTraining:
    torch.manual_seed(seed)
    model = LertForPreTraining(make_config(**changes))
    with torch.no_grad():  # far from the start, where all logits are near 0 and biases are 0
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_ids(batch: int = 3, length: int = 11, seed: int = 1) -> torch.Tensor:
    return torch.randint(5, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def recorded_masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor | None]]:
    masks: list[torch.Tensor | None] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(kwargs.get("attn_mask"))
        return attend(*args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
        yield masks


def test_parameters_have_the_names_of_bert() -> None:
    ours = make_model().state_dict()
    heads = {
        f"cls.predictions.output_{task}.{name}" for task in TAGS for name in ("weight", "bias")
    }
    assert ours.keys() - heads == BertForMaskedLM(make_config()).state_dict().keys()
    assert heads < ours.keys()


def test_logits_are_those_of_bert(tmp_path: Path) -> None:
    model, ids = make_model(), make_ids()
    mask = torch.arange(11) < torch.tensor([11, 4, 7])[:, None]
    model.save_pretrained(tmp_path)
    bert = BertForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(
        bert(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits
    )
    assert torch.equal(bert(ids).logits, model(ids).logits)
    bert.save_pretrained(tmp_path / "bert")
    back = LertForPreTraining.from_pretrained(tmp_path / "bert", config=make_config()).eval()
    assert torch.equal(back(ids).logits, model(ids).logits)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 32), max_size=40))
def test_masked_logits_are_rows_of_all_logits(positions: list[int]) -> None:
    model, ids = make_model(), make_ids()
    whole = model(ids)
    some = model(ids, masked_positions=torch.tensor(positions, dtype=torch.int64))
    torch.testing.assert_close(some.logits, whole.logits.flatten(0, 1)[positions])
    for task in TAGS:
        torch.testing.assert_close(
            some.tag_logits[task], whole.tag_logits[task].flatten(0, 1)[positions]
        )


def test_heads_read_the_transform() -> None:
    model, ids = make_model(), make_ids()
    transformed = model.cls.predictions.transform(model.bert(ids).last_hidden_state)
    output = model(ids)
    for task, tags in TAGS.items():
        head = model.state_dict()
        weight = head[f"cls.predictions.output_{task}.weight"]
        bias = head[f"cls.predictions.output_{task}.bias"]
        assert weight.shape == (len(tags), 32)
        torch.testing.assert_close(output.tag_logits[task], transformed @ weight.T + bias)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(attention: str) -> None:
    model = make_model(attn_implementation=attention)
    short, full = make_ids(1, 6, seed=2), make_ids(1, 11, seed=3)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 5), value=9), full])
    mask = torch.arange(11) < torch.tensor([6, 11])[:, None]
    both = model(padded, attention_mask=mask)
    torch.testing.assert_close(both.logits[:1, :6], model(short).logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(both.logits[1:], model(full).logits, atol=2e-5, rtol=1e-4)


def test_no_mask_is_built_where_nothing_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), make_ids()
    with recorded_masks(monkeypatch) as masks:
        model(ids)
        model(ids, attention_mask=torch.ones_like(ids))
    assert masks == [None] * 6
    with recorded_masks(monkeypatch) as masks:
        model(ids, attention_mask=torch.arange(11) < torch.tensor([11, 4, 7])[:, None])
    assert len(masks) == 3
    assert all(mask is not None for mask in masks)


def test_attention_implementations_agree() -> None:
    ids = make_ids()
    sdpa, eager = (make_model(attn_implementation=name) for name in ("sdpa", "eager"))
    torch.testing.assert_close(sdpa(ids).logits, eager(ids).logits, atol=2e-5, rtol=1e-4)


def test_nothing_masked_is_finite_and_gives_zero_gradients() -> None:
    model = make_model().train()
    output = model(make_ids(), masked_positions=torch.empty(0, dtype=torch.int64))
    assert output.logits.shape == (0, 60)
    assert {task: tuple(logits.shape) for task, logits in output.tag_logits.items()} == {
        task: (0, len(tags)) for task, tags in TAGS.items()
    }
    sum(logits.sum() for logits in [output.logits, *output.tag_logits.values()]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.parametrize("shape", [{}, UNEVEN])
def test_checkpointing_gives_equal_gradients(shape: dict[str, Any]) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = make_model(**shape).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        layers = []
        for layer in model.bert.encoder.layer:
            layer.attention.register_forward_hook(lambda *_: layers.append(1))
        torch.manual_seed(5)  # dropout: computed again with the same masks
        output = model(make_ids(), masked_positions=torch.tensor([1, 5, 17]))
        (output.logits.square().sum() + output.tag_logits["dep"].square().sum()).backward()
        assert len(layers) == (6 if checkpointing else 3)
        return {
            name: parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_starts_as_lert_does() -> None:
    torch.manual_seed(0)
    model = LertForPreTraining(make_config(hidden_size=256, vocab_size=999, pad_token_id=0))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert bool((parameter == 1).all()), name
        else:
            assert float(parameter.detach().abs().max()) <= 0.04, name
            if parameter.numel() > 8000:
                # A normal of deviation 0.02 that is cut at two deviations has one of 0.0176.
                assert abs(float(parameter.detach().std()) - 0.0176) < 0.0005, name
    assert model.bert.embeddings.word_embeddings.weight[0].any()


def test_the_deviation_of_the_start_is_configured() -> None:
    model = LertModel(make_config(initializer_range=0.5))
    assert 0.7 < float(model.pooler.dense.weight.detach().abs().max()) <= 1.0


@pytest.mark.parametrize("shape", [{}, UNEVEN])
def test_save_and_load_give_the_same_model(shape: dict[str, Any], tmp_path: Path) -> None:
    model, ids = make_model(**shape), make_ids()
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch's on weights without elements
        again, facts = LertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    again.eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
    for task in TAGS:
        assert torch.equal(again(ids).tag_logits[task], model(ids).tag_logits[task])
    assert [name for name, _ in again.named_parameters()] == [
        n for n, _ in model.named_parameters()
    ]


@pytest.mark.parametrize("cls", [LertForPreTraining, LertForMaskedLM])
def test_decoder_stays_tied(cls: type[LertForPreTraining], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    predictions = again.cls.predictions
    assert predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    assert predictions.decoder.bias is predictions.bias


def test_uneven_shapes_are_built() -> None:
    layers = make_model(**UNEVEN).bert.encoder.layer
    assert [layer.attention.output.dense.in_features for layer in layers] == [0, 24, 32]
    assert [layer.intermediate.dense.out_features for layer in layers] == [64, 0, 17]
    assert layers[1].attention.self.query.weight.shape == (24, 32)
    # ZeRO-3 gathers no parameter without elements.
    assert all(parameter.numel() for parameter in make_model(**UNEVEN).parameters())


def test_layer_without_heads_or_neurons_adds_its_bias() -> None:
    model = make_model(layer_attention_heads=[0, 4, 4], layer_intermediate_sizes=[0, 64, 64])
    layer, hidden = model.bert.encoder.layer[0], torch.randn(2, 5, 32)
    attended = layer.attention.output.LayerNorm(hidden + layer.attention.output.dense.bias)
    wanted = layer.output.LayerNorm(attended + layer.output.dense.bias)
    torch.testing.assert_close(layer(hidden), wanted)
    assert LertModel(make_config(**UNEVEN)).encoder.layer[0].attention.output.dense.bias.eq(0).all()


def test_a_pruned_head_is_a_head_of_zeros() -> None:
    """What a narrower layer computes is what the full one does with the other heads at zero."""
    narrow = make_model(layer_attention_heads=[4, 2, 4])
    full = make_model()
    weights = dict(narrow.state_dict())
    for name, weight in full.state_dict().items():
        if weights[name].shape != weight.shape:
            grown = torch.zeros_like(weight)
            grown[tuple(slice(0, size) for size in weights[name].shape)] = weights[name]
            weights[name] = grown
    full.load_state_dict(weights)
    torch.testing.assert_close(full(make_ids()).logits, narrow(make_ids()).logits)


def test_hidden_states_and_attentions_of_every_layer() -> None:
    model = make_model(attn_implementation="eager", **UNEVEN)
    output = model(make_ids(), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, 11, 32)] * 4
    assert [probabilities.shape[1] for probabilities in output.attentions] == [0, 3, 4]


@pytest.mark.parametrize(
    ("cls", "shape"),
    [
        (LertModel, None),
        (LertForMaskedLM, (3, 11, 60)),
        (LertForSequenceClassification, (3, 5)),
        (LertForTokenClassification, (3, 11, 5)),
        (LertForQuestionAnswering, (3, 11)),
    ],
)
def test_task_classes(cls: Any, shape: tuple[int, ...] | None, tmp_path: Path) -> None:
    labels = 2 if cls is LertForQuestionAnswering else 5
    torch.manual_seed(0)
    model = cls(make_config(num_labels=labels, **UNEVEN)).eval()
    output = model(make_ids())
    result = output["last_hidden_state" if shape is None else next(iter(output))]
    assert tuple(result.shape) == (shape or (3, 11, 32))
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path).eval()(make_ids())
    assert torch.equal(again[0], output[0])


def test_task_classes_read_what_pretraining_wrote(tmp_path: Path) -> None:
    model = make_model(**UNEVEN)
    model.save_pretrained(tmp_path)
    classifier, facts = LertForTokenClassification.from_pretrained(
        tmp_path, num_labels=5, output_loading_info=True
    )
    assert set(facts["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    theirs = classifier.eval().bert(make_ids()).last_hidden_state
    assert torch.equal(theirs, model.bert(make_ids()).last_hidden_state)
    masked, facts = LertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not facts["missing_keys"] and not facts["unexpected_keys"]  # noqa: PT018
    assert torch.equal(masked.eval()(make_ids()).logits, model(make_ids()).logits)


def test_auto_classes_know_it(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    for name, cls in AUTO_CLASSES.items():
        assert type(getattr(transformers, name).from_pretrained(tmp_path)) is cls


def test_new_tag_sets_start_new_heads_and_keep_the_others() -> None:
    model = make_model()
    kept = model.tag_head("ner").weight
    fresh = model.set_tag_sets({"ner": TAGS["ner"], "pos": ["v", "n", "a"], "dep": TAGS["dep"]})
    assert fresh == ("pos",)
    assert model.tag_head("ner").weight is kept
    assert float(model.tag_head("pos").weight.detach().abs().max()) <= 0.04
    assert list(model(make_ids()).tag_logits) == ["pos", "ner", "dep"]
    heads = [name for name, _ in model.named_parameters() if "output_" in name]
    assert heads == [name for name, _ in make_model().named_parameters() if "output_" in name]
    assert model.set_tag_sets({}) == ()
    assert model(make_ids()).tag_logits == {}


def test_travels_with_its_configuration_alone() -> None:
    tree = ast.parse(Path(modeling_lert.__file__).read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = {(node.level, node.module) for node in imports if node.level}
    assert ours == {(1, "configuration_lert")}
    theirs = {str(node.module).partition(".")[0] for node in imports if not node.level}
    assert theirs <= {"collections", "dataclasses", "torch", "transformers", "typing"}
