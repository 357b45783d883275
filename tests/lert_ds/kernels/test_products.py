"""Products by oneDNN against PyTorch's in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lert_ds.kernels import products
from lert_ds.kernels.products import OneDnnLinear, linear_of, onednn_linear

pytestmark = pytest.mark.skipif(not products.has_onednn(), reason="this PyTorch has no oneDNN")


def inputs_of(shape: tuple[int, ...], outputs: int, *, bias: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).requires_grad_()

    return [draw(*shape), draw(outputs, shape[-1]), draw(outputs) if bias else None]


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    outputs=st.integers(0, 9),
    bias=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_a_linear_module(
    shape: tuple[int, ...], outputs: int, bias: bool
) -> None:
    tensors = inputs_of((*shape, 5), outputs, bias=bias)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    found, expected = onednn_linear(*tensors), functional.linear(*exact)
    assert found.shape == expected.shape
    wanted = [tensor for tensor in tensors if tensor is not None]
    of_exact = [tensor for tensor in exact if tensor is not None]
    gradients = torch.autograd.grad(found.pow(2).sum(), wanted)
    others = torch.autograd.grad(expected.pow(2).sum(), of_exact)
    for ours, theirs in zip([found, *gradients], [expected, *others], strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("has_native", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(21, 150), (150, 21), (40, 40)])
def test_the_gradient_of_a_weight_is_right_whichever_side_is_transposed(
    inputs: int, outputs: int, has_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_native:
        monkeypatch.setattr(products.cpu_ops, "load", lambda: None)
    rows, weight, _ = inputs_of((50, inputs), outputs, bias=False)
    assert rows is not None
    assert weight is not None
    output = onednn_linear(rows, weight)
    (found,) = torch.autograd.grad(output.pow(2).sum(), weight)
    exact = 2 * output.detach().double().t() @ rows.detach().double()
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_gradient_that_nobody_wants_is_not_computed(place: int) -> None:
    tensors = inputs_of((3, 4), 2, bias=True)
    for number, tensor in enumerate(tensors):
        assert tensor is not None
        tensor.requires_grad_(number == place)
    onednn_linear(*tensors).sum().backward()
    assert [tensor is not None and tensor.grad is not None for tensor in tensors] == [
        number == place for number in range(3)
    ]


def test_rows_that_do_not_lie_together() -> None:
    inputs, weight, bias = inputs_of((6, 8), 4, bias=True)
    across = inputs.detach().t().contiguous().t()
    torch.testing.assert_close(
        onednn_linear(across, weight, bias), functional.linear(inputs, weight, bias)
    )


@pytest.mark.parametrize("case", ["float64", "bfloat16", "autocast"], ids=str)
def test_what_is_not_float32_is_pytorch_s(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_Product", None)  # it must not be asked
    dtype = torch.float32 if case == "autocast" else getattr(torch, case)
    tensors = [None if t is None else t.to(dtype) for t in inputs_of((3, 4), 2, bias=True)]
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(onednn_linear(*tensors), functional.linear(*tensors))


def test_a_module_becomes_one_and_back_without_a_change_of_its_weights() -> None:
    module = nn.Linear(4, 3)
    names = list(module.state_dict())
    expected = module(torch.ones(2, 4))
    module.__class__ = OneDnnLinear
    assert linear_of(module) is onednn_linear
    torch.testing.assert_close(module(torch.ones(2, 4)), expected)
    assert list(module.state_dict()) == names
    assert linear_of(nn.Linear(4, 3)) is functional.linear


@pytest.mark.parametrize(
    ("machine", "cpu", "prefers"),
    [
        ("x86_64", "vendor_id : AuthenticAMD", True),
        ("x86_64", "vendor_id : GenuineIntel", False),
        ("aarch64", "CPU implementer : 0x41", False),
    ],
)
def test_it_is_preferred_where_mkl_holds_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, machine: str, cpu: str, prefers: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpu, "utf-8")
    monkeypatch.setattr(products.platform, "machine", lambda: machine)
    monkeypatch.setattr(products, "Path", lambda _: path)
    monkeypatch.setattr(products.torch._C, "has_mkl", True)
    assert products.prefers_onednn.__wrapped__() is prefers


def test_a_model_learns_the_same(lert: Callable[..., Any], lert_batch: Callable[..., Any]) -> None:
    from lert_ds.kernels.apply import choose, use_kernels
    from lert_ds.kernels.kernels_config import KernelsConfig
    from lert_ds.pretraining_objective import LipConfig, PretrainingObjective

    plain = dict.fromkeys(("attention", "qkv", "activation", "residual", "dropout"), "plain")

    def gradients(name: str) -> dict[str, Tensor]:
        model = lert()
        kernels = choose(KernelsConfig(**plain, products=name), torch.device("cpu"))
        assert kernels.products == name
        use_kernels(model, kernels)
        trained = PretrainingObjective(model, LipConfig(), 10, fused_loss=True)
        trained(lert_batch(), step=0).loss.backward()
        return {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}

    ours, theirs = gradients("onednn"), gradients("plain")
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("prefers", [False, True])
def test_what_is_asked_for_comes_first(monkeypatch: pytest.MonkeyPatch, prefers: bool) -> None:
    monkeypatch.setattr(products, "prefers_onednn", lambda: prefers)
    taken = [products.takes_onednn(asked) for asked in ("auto", "plain", "onednn")]
    assert taken == [prefers, False, True]
