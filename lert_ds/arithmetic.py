"""What a training costs, by formula: operations and memory; for --dry-run and the MFU."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SLOW_SECONDS = 0.01
"""Of a matrix product: no larger one is measured."""


@dataclass(frozen=True)
class Shape:
    """The numbers of an encoder that its cost depends on."""

    layers: int
    hidden_size: int
    attention_size: float
    """Heads times their size, the mean of the layers: the hidden size where none is pruned."""
    intermediate_size: float
    """The mean of the layers."""
    vocabulary_size: int


def flops_per_token(shape: Shape, length: int, masked_share: float) -> float:
    """Return the floating-point operations a token of one training step, forward and backward.

    Two operations a multiply-add, and the backward pass costs twice the forward, hence 6 a weight:
    `6 · (layers · (4ha + 2hf) + masked · (h² + hV)) + 12 · layers · a · length`, the last term for
    the two products of attention; a is the attention size. Embedding look-ups, norms, activations
    and whatever gradient checkpointing computes again do not count (model operations, not those of
    the hardware).
    The same form as in Kaplan et al. 2020 (arXiv 2001.08361), appendix B, plus attention.
    """
    hidden = shape.hidden_size
    attention = shape.attention_size
    encoder = shape.layers * hidden * (4 * attention + 2 * shape.intermediate_size)
    heads = masked_share * (hidden**2 + hidden * shape.vocabulary_size)
    return 6.0 * (encoder + heads) + 12.0 * shape.layers * attention * length


def measured_peak_flops(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Return the operations a second of a large matrix product on `device`: what an MFU of 1 is.

    The best of `repeats` after a warm-up, since other work on the machine can only slow one down:
    about a quarter of a second on a processor core, 20 ms on a GPU. Of the libraries that PyTorch
    brings along for a processor it is the faster one (MKL and oneDNN). A processor without
    instructions for `dtype` takes seconds for one such product (bf16 with AVX2: 1.6 s), so there
    the product grows to its size from a small one, and stops growing where it is slow.
    """
    multiply: list[_Multiply] = [torch.matmul]
    if device.type == "cpu" and dtype == torch.float32 and torch._C._has_mkldnn:
        multiply.append(_by_onednn)
    sizes = (8192,) if device.type == "cuda" else (128, 256, 512, 1024)
    return max(_peak_flops(one, device, dtype, sizes, repeats) for one in multiply)


def _by_onednn(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product


def _peak_flops(
    multiply: _Multiply,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[int],
    repeats: int,
) -> float:
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

        def seconds(left: torch.Tensor = left, right: torch.Tensor = right) -> float:
            started = time.perf_counter()
            multiply(left, right)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - started

        seconds()  # the first one chooses and loads its kernel
        if seconds() > SLOW_SECONDS:
            break
    return 2.0 * size**3 / min(seconds() for _ in range(repeats))


@dataclass(frozen=True)
class Memory:
    """Bytes that one process keeps on its device, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    host: float
    """On the host, under offload."""

    @property
    def device_total(self) -> float:
        """Return the sum on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_per_process(
    shape: Shape,
    parameters: int,
    *,
    stage: int,
    precision: str,
    processes: int,
    micro_batch_size: int,
    length: int,
    masked_share: float,
    checkpointing: bool = False,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
) -> Memory:
    """Return the memory of one process, by the formulas of the ZeRO paper (arXiv 1910.02054).

    With P parameters, N processes: weights 4P bytes in fp32, 2P in bf16 and fp16, and in autocast
    6P, of which 2P are the casts that the forward keeps for the backward; gradients 4P in fp32 and
    autocast, else 2P; optimizer 8P (Adam's two moments), plus 4P of fp32 master weights in bf16 and
    fp16. Stage 1 divides the optimizer by N, stage 2 the gradients too, stage 3 the weights too.
    Activations that a layer keeps of a micro-batch of b instances of length n (Korthikanti et al.
    2022, arXiv 2205.05198, without the attention matrix, which SDPA does not keep on a GPU):
    b·n·(4h + 4a + 2f) elements (query, key, value, their result, the inputs and outputs of both
    norms; the feed-forward part before and after its activation) and 2·b·n·h bytes of dropout
    masks.
    With checkpointing one layer's, and b·n·h elements a layer. Then the masked logits, twice in
    fp32. Under offload the optimizer is on the host, with the gradients in fp32.
    An estimate: in bf16 and fp16 the gradients are there in fp32 too during the update (4P, divided
    as the optimizer is), and allocators and communication buffers take another 1 to 2 GB on a GPU.
    """
    weight_bytes = {"fp32": 4, "autocast": 6}.get(precision, 2)
    gradient_bytes = 4 if precision in ("fp32", "autocast") else 2
    master = 4 if precision in ("bf16", "fp16") else 0
    weights: float = weight_bytes * parameters / (processes if stage >= 3 else 1)
    gradients = gradient_bytes * parameters / (processes if stage >= 2 else 1)
    optimizer: float = (8 + master) * parameters / (processes if stage >= 1 else 1)
    host = 0.0
    if offload_optimizer:
        host, optimizer = host + optimizer + 4 * parameters / (processes if stage >= 1 else 1), 0.0
    if offload_parameters:
        host, weights = host + weights, 0.0
    tokens = micro_batch_size * length
    element = 4 if precision == "fp32" else 2
    hidden, attention, inner = shape.hidden_size, shape.attention_size, shape.intermediate_size
    layer = tokens * (element * (4 * hidden + 4 * attention + 2 * inner) + 2 * hidden)
    activations: float
    if checkpointing:
        activations = shape.layers * tokens * hidden * element + layer
    else:
        activations = shape.layers * layer
    activations += 2 * 4 * tokens * masked_share * shape.vocabulary_size
    return Memory(weights, gradients, optimizer, activations, host)
