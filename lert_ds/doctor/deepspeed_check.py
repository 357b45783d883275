"""What DeepSpeed itself says of a configuration, before an engine is made.

`train/deepspeed_config.py` refuses what DeepSpeed would pass over in silence; keys inside a section
DeepSpeed checks, and says so only when the engine starts, on every host.
"""

import contextlib
import copy
import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError


def problem_of(tree: Mapping[str, Any]) -> str | None:
    """Return what DeepSpeed refuses in its resolved configuration, or None."""
    if not torch.cuda.is_available():  # as in train/engine.py
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
        from deepspeed.utils import logger

        logger.setLevel("ERROR")
        alone = copy.deepcopy(dict(tree))  # as one process of the run sees it
        each, times = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
        alone["train_batch_size"] = alone[each] * alone[times]
        try:
            DeepSpeedConfig(alone)
        except ValidationError as error:
            return "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
            )
        except (DeepSpeedConfigError, ValueError, AssertionError, TypeError) as error:
            return str(error).strip().splitlines()[0]
    return None
