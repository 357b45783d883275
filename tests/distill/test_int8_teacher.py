import pytest
import torch
from torch import nn

from distill.features import Taps
from distill.int8_teacher import Int8Linear, Rounding, to_int8
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.modeling_lert import LertForPreTraining


def test_a_layer_errs_by_its_steps() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 24)
    features = torch.randn(3, 5, 64)
    found, wanted = Int8Linear(linear)(features), linear(features)
    # A weight is at most half a step off, a feature too (of 7 bits, from end to end).
    weight_step = linear.weight.abs().amax(1) / 127
    feature_step = (features.max() - features.min()) / 127
    bound = (
        features.abs().sum(-1, keepdim=True) * weight_step / 2
        + linear.weight.abs().sum(1) * feature_step
    )
    assert ((found - wanted).abs() <= bound).all()
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert (found - wanted).norm() > 0


def test_no_sum_of_products_overflows() -> None:
    """The largest bytes times the largest: in 16 bits two of them do not fit."""
    linear = nn.Linear(64, 8)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.zero_()
    features = torch.ones(4, 64)
    features[:, 0] = -1
    torch.testing.assert_close(
        Int8Linear(linear)(features), torch.full((4, 8), 62.0), rtol=0.01, atol=0
    )


def test_rows_of_zeros_stay_zeros() -> None:
    linear = nn.Linear(16, 4, bias=False)
    nn.init.zeros_(linear.weight)
    assert not Int8Linear(linear)(torch.randn(2, 16)).any()


def make_model() -> LertForPreTraining:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=60, num_hidden_layers=2, hidden_size=32, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=20, initializer_range=0.3,
        layer_attention_heads=[4, 0], tag_sets={"pos": ["n", "v"]},
    )  # fmt: skip
    return LertForPreTraining(config).eval().requires_grad_(False)


def test_the_encoder_is_int8_and_the_heads_are_not() -> None:
    model = make_model()
    to_int8(model)
    kinds = {type(m) for m in model.bert.encoder.modules() if not list(m.children())}
    assert Int8Linear in kinds
    assert nn.Linear not in kinds
    assert isinstance(model.cls.predictions.decoder, nn.Linear)


@torch.no_grad()
def test_a_model_says_nearly_the_same_and_its_features_can_be_taken() -> None:
    exact, rounded = make_model(), make_model()
    to_int8(rounded)
    wanted = {"hidden": [0, 2], "qkv": [0]}
    taps = [Taps(model, wanted, relation_heads=2) for model in (exact, rounded)]
    ids = torch.randint(5, 60, (3, 9))
    logits = [model(ids).logits for model in (exact, rounded)]
    assert 0 < (logits[0] - logits[1]).norm() < 0.1 * logits[0].norm()
    features = [one.take(None) for one in taps]
    torch.testing.assert_close(features[0]["hidden"][0], features[1]["hidden"][0])
    assert features[1]["qkv"][0][0].dtype == torch.float32


def test_a_torch_without_the_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="say fp32"):
        to_int8(make_model())


def test_the_engine_of_others_stays() -> None:
    before = torch.backends.quantized.engine
    to_int8(make_model())
    assert torch.backends.quantized.engine == before


def test_a_tensor_is_rounded_once_and_another_anew() -> None:
    torch.manual_seed(0)
    rounding, linear = Rounding(), nn.Linear(16, 4)
    query, key = Int8Linear(nn.Linear(16, 4), rounding), Int8Linear(linear, rounding)
    first, second = torch.randn(3, 16), 9 * torch.randn(3, 16)
    query(first)
    assert rounding(first)[0] is rounding(first)[0]
    for features in (first, second):
        assert key(features).equal(Int8Linear(linear)(features))
