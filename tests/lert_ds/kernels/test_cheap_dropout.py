import pytest
import torch
from torch import nn

from lert_ds.configuration_lert import LertConfig
from lert_ds.kernels import cheap_dropout
from lert_ds.kernels.cheap_dropout import CheapDropout, attend, scaled_keep
from lert_ds.modeling_lert import LertForPreTraining


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_units_are_dropped_with_the_probability(probability: float) -> None:
    torch.manual_seed(0)
    keep = scaled_keep((1000, 999), probability, torch.float32)
    dropped = (keep == 0).double().mean().item()
    assert dropped == pytest.approx(probability, abs=0.003)  # six standard deviations
    assert keep.double().mean().item() == pytest.approx(1.0, abs=0.02)
    assert keep.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], abs=1e-3)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    dropped = (scaled_keep((1_000_000,), 0.5, torch.float32) == 0).double()
    for distance in (1, 2, 3, 4, 64):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=0.003)


def test_a_seed_repeats_the_mask_and_the_next_draw_differs() -> None:
    dropout, inputs = CheapDropout(0.3), torch.ones(64, 64)
    torch.manual_seed(1)
    first, second = dropout(inputs), dropout(inputs)
    torch.manual_seed(1)
    assert torch.equal(dropout(inputs), first)
    assert not torch.equal(first, second)
    dropout.eval()
    assert dropout(inputs) is inputs


def test_the_gradient_goes_where_the_input_went() -> None:
    inputs = torch.ones(64, 64, requires_grad=True)
    output = CheapDropout(0.5)(inputs)
    output.sum().backward()
    assert torch.equal(inputs.grad, output.detach())


class Layer(nn.Module):
    """What transformers asks of an attention layer."""

    is_causal = False


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_sdpa_when_little_is_dropped(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 16, 8).unbind()
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[1, :, :, 10:] = False
    asked = mask if masked else None
    layer = Layer()
    expected, _ = attend(layer, query, key, value, asked, dropout=0.0, scaling=0.3)
    # So improbable that nothing is dropped: the plain path itself.
    found, _ = attend(layer, query, key, value, asked, dropout=1e-9, scaling=0.3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_mean_over_masks_is_attention_without_dropout() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 8, 8).unbind()
    layer = Layer()
    expected, _ = attend(layer, query, key, value, None)
    draws = [attend(layer, query, key, value, None, dropout=0.2)[0] for _ in range(3000)]
    torch.testing.assert_close(torch.stack(draws).mean(0), expected, atol=0.06, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradient_is_that_of_the_written_out_attention(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in torch.randn(3, 2, 4, 16, 8)]
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[1, :, :, 10:] = False
    torch.manual_seed(5)
    found, _ = attend(Layer(), *inputs, mask, dropout=0.3, scaling=0.3)
    direction = torch.randn_like(found)
    gradients = torch.autograd.grad(found, inputs, direction)

    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    query, key, value = exact
    torch.manual_seed(5)
    scores = (query @ key.mT * 0.3).masked_fill(~mask, -torch.inf)
    kept = scores.softmax(-1) * scaled_keep(scores.shape, 0.3, torch.float64)
    expected = (kept @ value).transpose(1, 2)
    wanted = torch.autograd.grad(expected, exact, direction.double())
    tolerance = 1e-9 if dtype == torch.float64 else 5e-2
    for ours, theirs in zip([found, *gradients], [expected, *wanted], strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)


def lert() -> LertForPreTraining:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    return LertForPreTraining(config)


def use_lots(model: LertForPreTraining) -> None:
    cheap_dropout.use_cheap_masks(model)
    model.set_attn_implementation(cheap_dropout.NAME)


def test_a_model_predicts_the_same_and_drops_in_training() -> None:
    ids = torch.randint(5, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[0, 9:] = False
    plain, fast = lert().eval(), lert().eval()
    use_lots(fast)
    assert not [module for module in fast.modules() if type(module) is nn.Dropout]
    assert plain.state_dict().keys() == fast.state_dict().keys()
    torch.testing.assert_close(fast(ids, mask).logits, plain(ids, mask).logits)
    fast.train()
    torch.manual_seed(3)
    first = fast(ids, mask).logits
    assert not torch.allclose(first, fast(ids, mask).logits)
    torch.manual_seed(3)
    assert torch.equal(fast(ids, mask).logits, first)


def test_checkpointing_draws_the_same_masks_again() -> None:
    ids = torch.randint(5, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        model = lert().train()
        use_lots(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(4)
        model(ids).logits.square().mean().backward()
        gradients.append(model.bert.encoder.layer[0].attention.self.query.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
