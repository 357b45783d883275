"""The kernels of a training by name: what computes attention, norms, activation and loss."""

from typing import Literal

from lert_ds.config import Config


class KernelsConfig(Config):
    """What computes the parts of a model. No choice changes what is trained, only how fast.

    `auto` is chosen for the device (docs/kernels.md says what of it was measured);
    `plain` is PyTorch and transformers as they are. Where a kernel cannot do what a model or a run
    asks for, the plain one does it, and a warning says so.
    """

    attention: Literal["auto", "plain", "lots", "fused", "varlen"] = "auto"
    """plain: PyTorch's; lots: the same on a processor, with cheap dropout masks; fused: blocks in
    the processor's cache, with dropout; varlen: flash attention over documents on a GPU."""
    qkv: Literal["auto", "plain", "fused"] = "auto"
    """fused: query, key and value in one matrix product."""
    activation: Literal["auto", "plain", "fused"] = "auto"
    """fused: bias and GELU in one pass."""
    residual: Literal["auto", "plain", "fused"] = "auto"
    """fused: dropout, sum and LayerNorm in one pass."""
    loss: Literal["auto", "plain", "fused"] = "auto"
    """fused: the MLM decoder and its cross entropy together, without keeping the logits."""
    dropout: Literal["auto", "plain", "lots"] = "auto"
    """lots: on a processor, masks from 16 random bits a unit; fused kernels have their own."""
    products: Literal["auto", "plain", "onednn"] = "auto"
    """onednn: on a processor, matrix products in float32 by oneDNN in the place of MKL."""
    compile: Literal["auto", "off", "layers"] = "auto"
    """layers: torch.compile of the encoder's layer, once for all of them."""
    cuda_graphs: bool = False
    """Replay compiled layers as CUDA graphs: for small models, whose kernels are short."""
    fp8: Literal["off", "torchao"] = "off"
    """torchao: the layers' matrix products in 8 bits, on GPUs that have them (H100 and later)."""
