"""Every kernel on a GPU against the plain one: losses, gradients, and a short training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lert_ds.kernels.apply import choose, use_kernels
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LipConfig, PretrainingObjective

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PLAIN = dict.fromkeys(("attention", "qkv", "activation", "residual", "loss"), "plain")
PLAIN |= {"compile": "off"}
CHOICES: dict[str, dict[str, Any]] = {
    "fused qkv": {**PLAIN, "qkv": "fused"},
    "fused activation": {**PLAIN, "activation": "fused"},
    "fused residual": {**PLAIN, "residual": "fused"},
    "fused loss": {**PLAIN, "loss": "fused"},
    "compiled": {**PLAIN, "compile": "layers"},
    "CUDA graphs": {**PLAIN, "compile": "layers", "cuda_graphs": True},
    "default": {},
}


def objective(lert: Callable[..., Any], names: dict[str, Any], **model: Any) -> Any:
    """Return what is trained, with such kernels, on the GPU."""
    made = lert(hidden_size=128, num_attention_heads=2, intermediate_size=256, **model)
    kernels = choose(KernelsConfig(**names), torch.device("cuda"))
    use_kernels(made, kernels)
    return PretrainingObjective(made, LipConfig(), 100, fused_loss=kernels.loss == "fused").cuda()


def result(trained: Any, batch: Batch, dtype: torch.dtype) -> tuple[float, dict[str, Any]]:
    """Return the loss and the gradients, in float64 on the host."""
    trained = trained.to(dtype)
    output = trained(batch.to(torch.device("cuda")), step=0)
    output.loss.backward()
    return float(output.loss), {
        name: parameter.grad.double().cpu()
        for name, parameter in trained.named_parameters()
        if parameter.grad is not None
    }


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    loss, gradients = found
    assert loss == pytest.approx(expected[0], rel=tolerance)
    assert gradients.keys() == expected[1].keys()
    # Some gradients are noise alone, that of a key's bias: what they are small against is the rest.
    largest = max(float(gradient.norm()) for gradient in expected[1].values())
    for name, gradient in gradients.items():
        other = expected[1][name]
        difference = (gradient - other).norm() / other.norm().clamp(min=0.01 * largest)
        assert float(difference) < 5 * tolerance, name


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("name", CHOICES)
def test_kernels_change_no_loss_and_no_gradient(
    lert: Callable[..., Any], lert_batch: Callable[..., Batch], name: str, dtype: torch.dtype,
    tolerance: float, padded: bool,
) -> None:  # fmt: skip
    batch = lert_batch(1, padded=padded, instances=8, length=32)
    expected = result(objective(lert, PLAIN), batch, dtype)
    assert_close(result(objective(lert, CHOICES[name]), batch, dtype), expected, tolerance)


def test_documents_apart_by_varlen_are_those_of_a_mask(
    lert: Callable[..., Any], lert_batch: Callable[..., Batch]
) -> None:
    batch = lert_batch(1, padded=False, instances=4, length=32)
    ends = torch.tensor([10, 32, 64, 70, 96, 100, 128, 128], dtype=torch.int32)
    batch = batch._replace(document_ends=ends)
    expected = result(objective(lert, PLAIN), batch, torch.bfloat16)
    together = result(objective(lert, PLAIN), batch._replace(document_ends=None), torch.bfloat16)
    assert abs(together[0] - expected[0]) > 1e-3
    found = result(objective(lert, {**PLAIN, "attention": "varlen"}), batch, torch.bfloat16)
    assert_close(found, expected, 2e-2)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no FP8"
)
def test_fp8_is_near(lert: Callable[..., Any], lert_batch: Callable[..., Batch]) -> None:
    pytest.importorskip("torchao")
    batch = lert_batch(1, padded=False, instances=8, length=32)
    expected = result(objective(lert, PLAIN), batch, torch.bfloat16)
    found = result(objective(lert, {"fp8": "torchao"}), batch, torch.bfloat16)
    assert_close(found, expected, 0.1)


@pytest.mark.parametrize("name", ["default", "CUDA graphs", "fp8"])
def test_a_training_learns_as_much(
    lert: Callable[..., Any], lert_batch: Callable[..., Batch], name: str
) -> None:
    if name == "fp8":
        pytest.importorskip("torchao")
    choices = CHOICES | {"fp8": {"fp8": "torchao"}}
    batches = [lert_batch(seed, padded=False, instances=8, length=32) for seed in range(4)]

    def losses(names: dict[str, Any]) -> list[float]:
        trained = objective(lert, names, dropout=0.1)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
        found = []
        for step in range(200):
            with torch.autocast("cuda", torch.bfloat16):
                batch = batches[step % 4].to(torch.device("cuda"))
                loss = trained(batch, step=0).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss))
        return found

    plain, other = losses(PLAIN), losses(choices[name])
    assert plain[0] > 2 * sum(plain[-20:]) / 20  # it learns
    assert sum(other[-20:]) == pytest.approx(sum(plain[-20:]), rel=0.15)
