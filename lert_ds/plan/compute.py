"""How long one device computes: a roofline of every product and every element-wise kernel.

A kernel takes the longer of its operations at the rate of its shape and its bytes at the memory's
(Williams et al. 2009, "Roofline"). Of a layer, per token, with h hidden, a attention and f
feed-forward units, n the length (Kaplan et al. 2020, arXiv 2001.08361; the bytes are counted from
the model's own kernels):

    products    2 · (4ha + 2hf)            forward, twice that backward
    attention   4 · a · n                  forward; backward 8 (10 where fused: it computes again)
    elements    forward 14h + 2a + 2f, backward 24h + 3a + 4f, and 1 byte a unit of dropout's mask;
                fused 8h + f each way
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lert_ds.plan.hardware import Device
from lert_ds.plan.workload import ELEMENT_BYTES, Workload

KERNELS_A_LAYER = {False: (24, 50), True: (12, 24)}
"""Whether kernels are fused, to how many a layer starts forward and backward (counted by hand)."""
KERNELS_BESIDE = 120
"""Of embeddings, heads, loss and metrics, forward and backward together."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one device for one micro-batch one way, by what they go into."""

    matrix: float
    """Products of the layers."""
    attention: float
    elements: float
    """Element-wise kernels, embeddings, and the gradients' way to where they are added up."""
    head: float
    """Transform, vocabulary and loss at the masked positions."""
    kernels: float
    """How many the host starts."""

    @property
    def seconds(self) -> float:
        """Return the device's time."""
        return self.matrix + self.attention + self.elements + self.head


def product_seconds(
    device: Device, precision: str, rows: float, inner: float, columns: float
) -> float:
    """Return the seconds, within a training, of a product of [rows, inner] and [inner, columns]."""
    if not rows or not inner or not columns:
        return 0.0
    element = ELEMENT_BYTES[precision]
    rate = device.matrix_flops(precision, inner) * device.rates.sustained
    moved = element * (rows * inner + inner * columns + rows * columns)
    return max(2 * rows * inner * columns / rate, moved / device.memory_rate())


def _there_and_back(
    device: Device, precision: str, rows: float, inner: float, columns: float
) -> tuple[float, float]:
    """Return the seconds of a linear layer forward, and of both its gradients."""
    forward = product_seconds(device, precision, rows, inner, columns)
    of_input = product_seconds(device, precision, rows, columns, inner)
    of_weights = product_seconds(device, precision, inner, rows, columns)
    return forward, of_input + of_weights


def layer_products(work: Workload, device: Device) -> tuple[float, float]:
    """Return the seconds of one layer's linear parts, forward and backward."""
    hidden, attention = work.shape.hidden_size, work.shape.attention_size
    inner = work.shape.intermediate_size
    first: Sequence[tuple[float, float]] = 3 * [(hidden, attention)]
    if work.fused_qkv:
        first = [(hidden, 3 * attention)]
    shapes = [*first, (attention, hidden), (hidden, inner), (inner, hidden)]
    times = [
        _there_and_back(device, work.product_precision, work.tokens, *shape) for shape in shapes
    ]
    return sum(time[0] for time in times), sum(time[1] for time in times)


def _attention(work: Workload, device: Device) -> tuple[float, float]:
    """Return the seconds of one layer's attention, forward and backward."""
    pairs = work.tokens * work.length * work.shape.attention_size
    if device.attention_flops is not None:  # measured with all that it does
        return 4 * pairs / device.attention_flops, 8 * pairs / device.attention_flops
    if work.fused_attention and device.fused_attention:
        rate = device.peak_flops(work.precision) * device.rates.attention
        return 4 * pairs / rate, 10 * pairs / rate
    return _attention_by_matrices(work, device)


def _attention_by_matrices(work: Workload, device: Device) -> tuple[float, float]:
    """Return the same where scores and probabilities, [length, length] a head, go to memory.

    Softmax reads and writes them once, its gradient reads twice and writes once; dropout adds two
    and its mask each way; out of plain kernels, scaling and the padding's mask add 4 and 2.
    """
    if not work.heads:
        return 0.0, 0.0
    size = work.shape.attention_size / work.heads
    matrices = work.micro_batch_size * work.heads
    scores = matrices * product_seconds(device, work.precision, work.length, size, work.length)
    mixed = matrices * product_seconds(device, work.precision, work.length, work.length, size)
    element = ELEMENT_BYTES[work.precision]
    plain = 0 if work.fused_kernels else 1
    numbers = matrices * work.length**2 / device.element_rate()
    forward = scores + mixed + numbers * (element * (4 + 4 * plain) + 1)
    backward = scores + 3 * mixed + numbers * (element * (5 + 2 * plain) + 1)
    return forward, backward


def _elements(work: Workload, device: Device) -> tuple[float, float]:
    """Return the seconds of one layer's element-wise kernels, forward and backward."""
    forward, backward = layer_bytes(work, ELEMENT_BYTES[work.precision])
    return work.tokens * forward / device.element_rate(), (
        work.tokens * backward / device.element_rate()
    )


def layer_bytes(work: Workload, element: float) -> tuple[float, float]:
    """Return the bytes a token that one layer's element-wise kernels move, forward and backward.

    `element`: bytes of one.
    """
    hidden, attention = work.shape.hidden_size, work.shape.attention_size
    inner = work.shape.intermediate_size
    masks = 2 * hidden  # bytes of two dropouts
    if work.fused_kernels:
        units = (8 * hidden + inner, 8 * hidden + inner)
    else:
        units = (
            14 * hidden + 2 * attention + 2 * inner,
            24 * hidden + 3 * attention + 4 * inner,
        )
    return element * units[0] + masks, element * units[1] + masks


def _head(work: Workload, device: Device) -> tuple[float, float]:
    """Return the seconds of the heads at the masked positions, forward and backward.

    The logits are cast to fp32, reduced over the vocabulary and looked through for the largest.
    """
    hidden, vocabulary = work.shape.hidden_size, work.shape.vocabulary_size
    masked = work.tokens * work.masked_share
    element = ELEMENT_BYTES[work.precision]
    forward, backward = _there_and_back(device, work.precision, masked, hidden, hidden)
    decoder = _there_and_back(device, work.precision, masked, hidden, vocabulary)
    logits = masked * vocabulary / device.element_rate()
    forward += decoder[0] + logits * (2 * element + 4 + 8)
    backward += decoder[1] + logits * (8 + 4 + element)
    return forward, backward


def _beside(work: Workload, device: Device) -> tuple[float, float]:
    """Return the seconds of embeddings, casts of weights and gradients on their way."""
    shape, element = work.shape, ELEMENT_BYTES[work.precision]
    table = shape.vocabulary_size * shape.hidden_size
    casts = 6 * work.parameters if work.precision == "autocast" else 0
    forward = 12 * element * work.tokens * shape.hidden_size + casts
    backward = element * (11 * work.tokens * shape.hidden_size + 3 * table + 3 * work.parameters)
    return forward / device.memory_rate(), backward / device.memory_rate()


def passes(work: Workload, device: Device) -> tuple[Pass, Pass]:
    """Return what a micro-batch takes on `device`, forward and backward.

    Under gradient checkpointing the backward pass computes the layers forward again.
    """
    layers = work.shape.layers
    matrix, attention = layer_products(work, device), _attention(work, device)
    elements, head, beside = _elements(work, device), _head(work, device), _beside(work, device)
    again = 1 if work.checkpointing else 0
    kernels = KERNELS_A_LAYER[work.fused_kernels]

    def one(way: int) -> Pass:
        repeat = again * way
        return Pass(
            matrix=layers * (matrix[way] + repeat * matrix[0]),
            attention=layers * (attention[way] + repeat * attention[0]),
            elements=layers * (elements[way] + repeat * elements[0]) + beside[way],
            head=head[way],
            kernels=layers * (kernels[way] + repeat * kernels[0]) + KERNELS_BESIDE / 2,
        )

    return one(0), one(1)
