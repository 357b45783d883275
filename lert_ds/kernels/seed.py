"""The one number a dropout mask follows from."""

import torch


def draw_seed() -> int:
    """Return a number from torch's generator of the processor, which a checkpointing repeats."""
    return int(torch.empty((), dtype=torch.int64).random_())
