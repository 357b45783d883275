"""The optimizer and the schedule of LERT in NumPy, from `optimization.py` of Google's BERT.

    rate = learning_rate(step, peak=1e-4, steps=2_000_000, warmup=10_000)
    optimizer = AdamW()
    optimizer.update(parameters, gradients, rate)         in place; the norm before clipping

AdamW without bias correction, weight decay 0.01 on all but LayerNorm and biases, gradients cut to
a norm of 1 over all parameters.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Parameters = dict[str, NDArray[np.floating[Any]]]

WITHOUT_DECAY = re.compile("LayerNorm|layer_norm|bias")


def learning_rate(step: int, *, peak: float, steps: int, warmup: int) -> float:
    """Return the rate of update number `step`, from 0: it grows linearly, then falls to 0.

    The fall counts from step 0 (`tf.train.polynomial_decay`), so the rate drops a little where the
    warm-up ends.
    """
    if step < warmup:
        return peak * step / warmup
    return peak * (1.0 - min(step, steps) / steps)


@dataclass
class AdamW:
    """`AdamWeightDecayOptimizer`."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    decay: float = 0.01
    largest_norm: float = 1.0
    norm_extra: float = 0.0
    """Added to the norm that gradients are divided by: 0 in TensorFlow, 1e-6 in PyTorch."""
    means: Parameters = field(default_factory=dict)
    squares: Parameters = field(default_factory=dict)

    def update(self, parameters: Parameters, gradients: Parameters, rate: float) -> float:
        """Move `parameters`; return the norm of the gradients before they were cut."""
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
        factor = min(1.0, self.largest_norm / (norm + self.norm_extra)) if norm else 1.0
        for name, parameter in parameters.items():
            gradient = gradients[name] * factor
            mean = self.beta1 * self.means.get(name, 0.0) + (1 - self.beta1) * gradient
            square = self.beta2 * self.squares.get(name, 0.0) + (1 - self.beta2) * gradient**2
            self.means[name], self.squares[name] = mean, square
            step = mean / (np.sqrt(square) + self.epsilon)
            if not WITHOUT_DECAY.search(name):
                step = step + self.decay * parameter
            parameters[name] = (parameter - rate * step).astype(parameter.dtype)
        return norm
