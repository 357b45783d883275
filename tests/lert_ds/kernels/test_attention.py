"""The attention of `cpu/attention.h` against one written out in float64, its masks included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lert_ds.kernels import attention
from lert_ds.kernels.attention import attend, attend_packed, function_of, ranges_of
from lert_ds.kernels.seed import draw_seed

Keep = Callable[[int, int, int, float], Tensor]
SHAPES = [
    (1, 1, 1, 1), (2, 1, 3, 24), (1, 7, 1, 64), (3, 7, 2, 1), (2, 129, 1, 24), (1, 513, 2, 24),
    (2, 130, 3, 64),
]  # fmt: skip
"""Instances, length, heads, size of a head; 128 rows are a block, at length 513 fewer are."""


class Layer(nn.Module):
    """What transformers asks of an attention layer."""

    is_causal = False


def packed_of(batch: int, length: int, heads: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(batch, length, 3, heads, size, generator=generator)


def padding(batch: int, length: int) -> Tensor:
    """Keys at the end that nobody sees: none of the first instance's, all but one of the last's."""
    ends = torch.linspace(length, 1, batch).round()
    return (torch.arange(length) < ends[:, None])[:, None, :].expand(batch, length, length)


def documents(batch: int, length: int) -> Tensor:
    """Queries that see the keys of their own document: blocks on the diagonal."""
    generator = torch.Generator().manual_seed(3)
    numbers = (torch.rand(batch, length, generator=generator) < 0.1).cumsum(-1)
    return numbers[:, :, None] == numbers[:, None, :]


def blind(batch: int, length: int) -> Tensor:
    """Queries that see nothing: each third one, and all of the last instance's."""
    seen = documents(batch, length).clone()
    seen[:, ::3] = False
    seen[-1] = False
    return seen


MASKS = {"all": None, "padding": padding, "documents": documents, "blind": blind}


def written_out(
    packed: Tensor, allowed: Tensor | None, kept: Tensor | float, scaling: float
) -> Any:
    """Return [batch, length, heads, size], each operation by itself."""
    query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))
    scores = query @ key.mT * scaling
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    probabilities = torch.nan_to_num(scores.softmax(-1))  # a query that sees nothing
    return ((probabilities * kept) @ value).transpose(1, 2)


def both(
    native: Any, keep: Keep, packed: Tensor, allowed: Tensor | None, dropout: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs and the gradients of the kernel and of the reference."""
    batch, length, _, heads, _ = packed.shape
    ranges = None if allowed is None else ranges_of(allowed[:, None], batch, length)
    assert (ranges is None) == (allowed is None)
    torch.manual_seed(5)
    seed = draw_seed()
    torch.manual_seed(5)
    ours = packed.clone().requires_grad_()
    found = attend_packed(native, ours, ranges, dropout=dropout, scaling=0.3)
    direction = torch.randn_like(found)
    of_ours = torch.autograd.grad(found, ours, direction)[0]

    kept: Tensor | float = 1.0
    if dropout:
        kept = keep(seed, batch * heads * length, length, dropout)
        kept = kept.view(batch, heads, length, length)
    exact = packed.double().requires_grad_()
    expected = written_out(exact, allowed, kept, 0.3)
    of_exact = torch.autograd.grad(expected, exact, direction.double())[0]
    return [found, of_ours], [expected, of_exact]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_written_out_attention(
    native: Any, keep: Keep, shape: tuple[int, int, int, int], name: str, dropout: float
) -> None:
    make = MASKS[name]
    allowed = None if make is None else make(*shape[:2])
    found, expected = both(native, keep, packed_of(*shape), allowed, dropout)
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.detach().abs().max().clamp_min(1.0))
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6 * scale, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), dropout=st.sampled_from([0.0, 0.3]))
def test_any_stretches_of_any_shape(
    native: Any, keep: Keep, data: st.DataObject, dropout: float
) -> None:
    batch, length, heads, size = (data.draw(st.integers(1, most)) for most in (3, 40, 3, 9))
    ends = st.tuples(st.integers(0, length), st.integers(0, length)).map(sorted)
    rows = batch * length
    stretches = torch.tensor(data.draw(st.lists(ends, min_size=rows, max_size=rows)))
    first, last = stretches.view(batch, length, 2, 1).unbind(2)
    places = torch.arange(length)
    allowed = (first <= places) & (places < last)
    found, expected = both(native, keep, packed_of(batch, length, heads, size), allowed, dropout)
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.detach().abs().max().clamp_min(1.0))
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_it_computes_in_float32_half_precision_is_rounded_once_at_the_end(
    native: Any, keep: Keep, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_multiplies_bf16", lambda _: False)
    found, expected = both(native, keep, packed_of(2, 33, 2, 24).to(dtype), padding(2, 33), 0.1)
    assert [tensor.dtype for tensor in found] == [dtype, dtype]
    for ours, theirs in zip(found, expected, strict=True):
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(ours.double(), theirs, atol=unit / 10, rtol=unit)


@pytest.fixture
def in_bf16(native: Any) -> Any:
    """The kernels, on a processor that multiplies bf16."""
    if not attention._multiplies_bf16(native):
        pytest.skip("needs a processor that multiplies bf16")
    return native


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 2), (2, 129, 1, 24), (3, 33, 2, 64), (1, 512, 2, 64), (2, 130, 3, 64), (1, 7, 1, 9)],
    ids=str,
)
def test_in_bf16_it_is_near(
    in_bf16: Any, keep: Keep, shape: tuple[int, int, int, int], name: str, dropout: float
) -> None:
    make = MASKS[name]
    allowed = None if make is None else make(*shape[:2])
    found, expected = both(in_bf16, keep, packed_of(*shape).bfloat16(), allowed, dropout)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.double() - theirs).norm() / theirs.norm().clamp_min(1e-9)
        assert float(error) < 1.2e-2  # one rounding to bf16 is 2e-3


@pytest.mark.parametrize("number", [2, 3])
def test_in_bf16_threads_change_nothing(
    in_bf16: Any, threads: Callable[[int], Any], number: int
) -> None:
    def run(count: int) -> list[Tensor]:
        with threads(count):
            torch.manual_seed(1)
            ours = packed_of(2, 200, 3, 16).bfloat16().requires_grad_()
            found = attend_packed(in_bf16, ours, None, dropout=0.1)
            return [found, *torch.autograd.grad(found, ours, torch.ones_like(found))]

    for one, other in zip(run(1), run(number), strict=True):
        assert torch.equal(one, other)


def test_the_default_scaling_is_that_of_the_size(native: Any) -> None:
    packed = packed_of(1, 9, 2, 16)
    found = attend_packed(native, packed, None, dropout=0.0)
    torch.testing.assert_close(found, written_out(packed, None, 1.0, 0.25))


def test_a_gradient_that_is_one_number_spread_out_is_read_right(native: Any) -> None:
    # `sum` gives every row the same memory: a stride of 0, which BLAS refuses.
    packed = packed_of(2, 9, 2, 8).requires_grad_()
    of_ours = torch.autograd.grad(
        attend_packed(native, packed, None, dropout=0.0).sum(1).square().sum(), packed
    )[0]
    expected = written_out(packed, None, 1.0, 8**-0.5).sum(1).square().sum()
    of_exact = torch.autograd.grad(expected, packed)[0]
    torch.testing.assert_close(of_ours, of_exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_several_threads_give_what_one_gives(
    native: Any, keep: Keep, threads: Callable[[int], Any], dropout: float
) -> None:
    results = []
    for number in (1, 3):
        with threads(number):
            assert torch.get_num_threads() == number
            results.append(both(native, keep, packed_of(3, 150, 3, 24), documents(3, 150), dropout))
    for one, several in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(one, several)


def test_what_is_not_finite_is_seen(native: Any) -> None:
    packed = packed_of(1, 9, 2, 8)
    for wrong in (torch.nan, torch.inf):
        spoilt = packed.clone()
        spoilt[0, 4, 0, 1, 3] = wrong  # the query of one row and head
        found = attend_packed(native, spoilt, None, dropout=0.0).isnan().all(-1)[0]
        assert found.nonzero().tolist() == [[4, 1]]


def mask_of(
    native: Any, dropout: float, batch: int = 2, heads: int = 4, length: int = 256
) -> Tensor:
    """Return which probabilities the kernel drops, bool [batch, heads, length, length].

    Even probabilities, and values that are the unit vectors: outputs are the mask itself.
    """
    packed = torch.zeros(batch, length, 3, heads, length)
    packed[:, :, 2] = torch.eye(length)[:, None]
    return attend_packed(native, packed, None, dropout=dropout).transpose(1, 2) == 0


@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.5])
def test_as_many_are_dropped_as_asked(native: Any, dropout: float) -> None:
    torch.manual_seed(0)
    dropped = mask_of(native, dropout).double()
    deviation = (dropout * (1 - dropout) / dropped.numel()) ** 0.5
    assert dropped.mean().item() == pytest.approx(dropout, abs=5 * deviation)
    # Nor do rows and columns have more than their share.
    for dimension in (-1, -2):
        shares = dropped.mean(dimension)
        spread = (dropout * (1 - dropout) / 256) ** 0.5
        assert shares.std().item() == pytest.approx(spread, rel=0.1)
        assert (shares - dropout).abs().max().item() < 6 * spread


def test_neighbours_are_independent(native: Any) -> None:
    torch.manual_seed(1)
    dropped = mask_of(native, 0.5).double() - 0.5
    for dimension in (-1, -2, 0, 1):
        for distance in (1, 2, 3, 4, 16, 64):
            if distance < dropped.shape[dimension]:
                shifted = dropped.roll(distance, dimension)
                correlation = 4 * (dropped * shifted).mean().item()
                assert abs(correlation) < 5 / dropped.numel() ** 0.5, (dimension, distance)


def test_a_seed_repeats_its_mask_and_the_next_draw_differs(native: Any) -> None:
    torch.manual_seed(7)
    first, second = mask_of(native, 0.5), mask_of(native, 0.5)
    torch.manual_seed(7)
    assert torch.equal(mask_of(native, 0.5), first)
    assert (first == second).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_checkpointing_draws_the_same_mask_again(native: Any) -> None:
    def gradient(*, again: bool) -> Tensor:
        torch.manual_seed(2)
        packed = packed_of(2, 20, 2, 8).requires_grad_()

        def forward(given: Tensor) -> Tensor:
            return attend_packed(native, given, None, dropout=0.4).square()

        output = checkpoint(forward, packed, use_reentrant=False) if again else forward(packed)
        torch.manual_seed(99)
        return torch.autograd.grad(output.sum(), packed)[0]

    assert torch.equal(gradient(again=True), gradient(again=False))


def test_what_is_kept_for_the_backward_pass_is_not_of_length_by_length(native: Any) -> None:
    packed = packed_of(1, 300, 2, 8).requires_grad_()
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attend_packed(native, packed, None, dropout=0.1)
    assert kept
    assert max(kept) < 300 * 300


@pytest.mark.parametrize("name", MASKS)
def test_transformers_calls_it_as_it_calls_sdpa(native: Any, name: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 19, 8).unbind()
    make = MASKS[name]
    allowed = None if make is None else make(2, 19)[:, None]
    found, nothing = function_of("lert_fused")(Layer(), query, key, value, allowed, scaling=0.3)
    assert nothing is None
    expected = sdpa_attention_forward(Layer(), query, key, value, allowed, scaling=0.3)[0]
    if name == "blind":  # PyTorch's own version decides what these are
        expected = expected.masked_fill(~allowed.any(-1).transpose(1, 2)[..., None], 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


SEVERAL = torch.ones(2, 1, 9, 9, dtype=torch.bool)
SEVERAL[1, 0, 4, 3] = False
FALLING_BACK = {
    "two stretches": SEVERAL,
    "numbers that are added": torch.randn(2, 1, 9, 9),
    "heads that differ": torch.arange(4 * 9).view(1, 4, 1, 9) % 5 > 0,
    "all keys alike": torch.ones(2, 1, 9, 1, dtype=torch.bool),
}


@pytest.mark.parametrize("name", FALLING_BACK)
@pytest.mark.usefixtures("native")
def test_a_mask_that_is_no_single_stretch_is_left_to_sdpa(name: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8).unbind()
    mask = FALLING_BACK[name]
    assert ranges_of(mask, 2, 9) is None
    found = attend(Layer(), query, key, value, mask, scaling=0.3)[0]
    expected = sdpa_attention_forward(Layer(), query, key, value, mask, scaling=0.3)[0]
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("native")
def test_double_precision_is_left_to_sdpa() -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64).unbind()
    found = attend(Layer(), query, key, value, None)[0]
    assert torch.equal(found, sdpa_attention_forward(Layer(), query, key, value, None)[0])


@pytest.mark.usefixtures("native")
def test_queries_and_keys_of_two_lengths_are_left_to_sdpa() -> None:
    query, (key, value) = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 4, 9, 8).unbind()
    found = attend(Layer(), query, key, value, None)[0]
    assert torch.equal(found, sdpa_attention_forward(Layer(), query, key, value, None)[0])


@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (1, 1, 9, 9), (1, 1, 1, 9)], ids=str)
@pytest.mark.usefixtures("native")
def test_a_mask_may_be_one_for_all_queries_or_instances(shape: tuple[int, ...]) -> None:
    mask = (torch.arange(9) < 6).expand(shape)
    ranges = ranges_of(mask, 2, 9)
    assert ranges is not None
    assert ranges.tolist() == [[[0, 6]] * 9] * 2
    query, key, value = torch.randn(3, 2, 4, 9, 8).unbind()
    found = attend(Layer(), query, key, value, mask, scaling=0.3)[0]
    expected = sdpa_attention_forward(Layer(), query, key, value, mask, scaling=0.3)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_ranges_are_found_once_a_mask_and_anew_where_it_changes() -> None:
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    first = ranges_of(mask, 1, 3)
    assert ranges_of(mask, 1, 3) is first
    mask[..., 2] = False
    changed = ranges_of(mask, 1, 3)
    assert changed is not None
    assert changed.tolist() == [[[0, 2]] * 3]
    other = ranges_of(mask.clone(), 1, 3)
    assert other is not changed
    with torch.inference_mode():
        unseen = torch.ones(1, 1, 3, 3, dtype=torch.bool)
        unseen_before = ranges_of(unseen, 1, 3)
        unseen[..., 0] = False
        unseen_after = ranges_of(unseen, 1, 3)
    assert unseen_before is not None
    assert unseen_after is not None
    assert (unseen_before[0, 0].tolist(), unseen_after[0, 0].tolist()) == ([0, 3], [1, 3])


def test_the_kernel_refuses_what_it_would_read_wrongly(native: Any) -> None:
    tensors = torch.randn(3, 1, 2, 5, 8).unbind()
    numbers = (0.0, 1.0, 0)
    with pytest.raises(RuntimeError, match="ranges of another shape"):
        native.attention_forward(*tensors, torch.zeros(1, 4, 2, dtype=torch.int32), *numbers)
    spread = torch.randn(1, 2, 1, 8).expand(1, 2, 5, 8)
    with pytest.raises(RuntimeError, match="rows that overlap"):
        native.attention_forward(spread, *tensors[1:], None, *numbers)
    with pytest.raises(RuntimeError, match="dropout = 1"):
        native.attention_forward(*tensors, None, 1.0, 1.0, 0)
    with pytest.raises(RuntimeError):
        native.attention_forward(tensors[0], tensors[1][:, :, :4], tensors[2], None, *numbers)
