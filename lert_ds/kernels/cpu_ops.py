"""Builds and loads `cpu_ops.cpp`, the kernels for a processor, on their first use.

A minute once a machine: a C++ compiler and ninja are needed, as for DeepSpeed's own ops. What is
built is kept by the hash of its source, flags, torch and processor, so that a home folder that
machines of several kinds share holds one for each.
"""

import functools
import hashlib
import logging
import platform
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

from lert_ds.machine import processor_features
from lert_ds.train import op_builds

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu_ops.cpp")
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
    native = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    parts = [SOURCE.read_text("utf-8"), *FLAGS, torch.__version__, *processor_features()]
    name = f"lert_ds_cpu_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}"
    op_builds.use_own_programs()
    op_builds.wait_for_builds()
    try:
        cpp_extension.load(
            name,
            [str(SOURCE)],
            extra_cflags=[*FLAGS, native, f"-DLERT_DS_LIBRARY={name}"],
            extra_ldflags=["-fopenmp"],
            is_python_module=False,
        )
    except (OSError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()
        logger.warning(
            "kernels: the ones for this processor could not be built, so the slower ones train: %s",
            reason[0] if reason else type(error).__name__,
        )
        return None
    return getattr(torch.ops, name)
