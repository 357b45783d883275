"""Builds and loads `cpu/cpu_ops.cpp`, the kernels for a processor, on their first use: a minute."""

import functools
from pathlib import Path
from typing import Any

import torch

from lert_ds import op_builds

SOURCE = Path(__file__).with_name("cpu") / "cpu_ops.cpp"
# Reductions may change their order and NaN need not be told from numbers: then loops become vector
# instructions. The trainer looks for inf and NaN in losses and gradients, outside of these loops.
FLAGS = (
    "-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
    "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math",
)  # fmt: skip


@functools.cache
def load() -> Any | None:
    """Return the kernels, an object with a function each; None, with a warning, where they fail.

    Without them training is the same but slower.
    """
    path = op_builds.build(SOURCE, FLAGS, "the slower kernels train")
    return None if path is None else getattr(torch.ops, path.stem)
