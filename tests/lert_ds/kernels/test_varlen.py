"""Off a GPU it is SDPA; on one (faked where there is none) what is laid end to end comes back."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lert_ds.kernels import varlen
from lert_ds.kernels.attention import function_of
from lert_ds.kernels.varlen import NAME, attend


class Layer(nn.Module):
    """What transformers asks of an attention layer."""

    is_causal = False


def test_transformers_knows_it_by_its_name() -> None:
    assert function_of(NAME) is attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [None, [0, 4, 9, 18]])
def test_on_a_processor_it_is_sdpa_with_the_mask(
    dtype: torch.dtype, documents: list[int] | None
) -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8).to(dtype).unbind()
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    ends = None if documents is None else torch.tensor(documents, dtype=torch.int32)
    found = attend(Layer(), query, key, value, mask, scaling=0.3, cu_seqlens=ends)[0]
    expected = sdpa_attention_forward(Layer(), query, key, value, mask, scaling=0.3)[0]
    assert torch.equal(found, expected)


def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def note(*arguments: Any, **options: Any) -> tuple[torch.Tensor]:
        calls.append((*arguments, options))
        return (torch.empty_like(arguments[0]),)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", note)
    return calls


def test_on_a_gpu_instances_are_laid_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch)
    with FakeTensorMode():
        query, key, value = (
            torch.empty(2, 4, 9, 8, dtype=torch.bfloat16, device="cuda") for _ in range(3)
        )
        ends = torch.empty(4, dtype=torch.int32, device="cuda")
        found, nothing = attend(
            Layer(), query, key, value, None, dropout=0.1, scaling=0.3, cu_seqlens=ends
        )
        assert found.shape == (2, 9, 4, 8)
        assert nothing is None
        (call,) = calls
        assert [tuple(part.shape) for part in call[:3]] == [(18, 4, 8)] * 3
        assert call[3] is call[4] is ends
        assert call[5:] == (9, 9, 0.1, False, False, {"scale": 0.3})


def test_on_a_gpu_what_flash_attention_cannot_do_is_left_to_sdpa(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = asked(monkeypatch)
    left: list[torch.dtype] = []
    monkeypatch.setattr(
        varlen,
        "sdpa_attention_forward",
        lambda _, query, *rest, **options: left.append(query.dtype),
    )
    with FakeTensorMode():
        full = torch.empty(2, 4, 9, 8, device="cuda")
        ends = torch.empty(4, dtype=torch.int32, device="cuda")
        attend(Layer(), full, full, full, None, cu_seqlens=ends)
        half = full.bfloat16()
        attend(Layer(), half, half, half, None)  # nobody says where documents begin
    assert left == [torch.float32, torch.bfloat16]
    assert not calls
