"""The PyTorch models of a benchmark: a model folder to a runner of arrays, whatever its head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from lert_ds import model_dir
from lert_ds.errors import ModelError
from lert_ds.modeling_lert import LertForPreTraining
from prune.benchmark.heads import MLM
from prune.benchmark.worker import Arrays, Opener, Runner
from prune.export.export_config import HeadName
from prune.export.source import HEADS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(folder: Path, precision: str, head: HeadName = MLM) -> PreTrainedModel:
    """Return the model of a folder with the heads that it has learnt, in evaluation mode.

    Raises:
        ModelError: it cannot be read, or it has no such head.
    """
    if head == MLM:
        return load_mlm(folder, precision)
    model: PreTrainedModel
    model, report = model_dir.load(folder, HEADS[head].lert, dtype=DTYPES[precision])
    if report.random:
        raise ModelError(
            f"{folder}: it has no weights for {head} ({min(report.random)}); name a model that was "
            "fine-tuned for it"
        )
    return model.eval()


def load_mlm(folder: Path, precision: str) -> LertForPreTraining:
    """Return a model that fills [MASK] with the linguistic heads that it has learnt.

    Raises:
        ModelError: it cannot be read, or it has no MLM head.
    """
    model, report = model_dir.load(folder, LertForPreTraining, dtype=DTYPES[precision])
    random = set(report.random)
    if "cls.predictions.transform.dense.weight" in random:
        raise ModelError(
            f"{folder}: it has no MLM head, and filling [MASK] is what is measured; name a "
            "pre-trained model, not one that is fine-tuned for a task"
        )
    learnt = {
        task: tags
        for task, tags in (model.config.tag_sets or {}).items()
        if f"cls.predictions.output_{task}.weight" not in random
    }
    model.set_tag_sets(learnt)
    model.eval()
    return model


def opener(folder: Path, precision: str, head: HeadName = MLM) -> Opener:
    """Return what opens the model of a folder; it is read once, whatever the threads."""
    models: list[PreTrainedModel] = []

    def open_model(threads: int) -> Runner:
        torch.set_num_threads(threads)
        if not models:
            models.append(load(folder, precision, head))
        return runner(models[0]) if head == MLM else task_runner(models[0])

    return open_model


def runner(model: nn.Module) -> Runner:
    """Return what runs a model that fills [MASK] on arrays, at the masked positions alone.

    A mask that masks nothing is left out, as in a training: attention then has its fastest kernel.
    """

    @torch.inference_mode()
    def run(inputs: Arrays) -> Mapping[str, NDArray[np.float32]]:
        masked = torch.from_numpy(inputs["masked_positions"])
        output: Any = model(**_tensors(inputs), masked_positions=masked)
        tags = {f"{task}_logits": logits for task, logits in output.tag_logits.items()}
        found = {"logits": output.logits, **tags}
        return {name: logits.float().numpy() for name, logits in found.items()}

    return run


def _tensors(inputs: Arrays) -> dict[str, torch.Tensor | None]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    tensors: dict[str, torch.Tensor | None] = {n: torch.from_numpy(inputs[n]) for n in names}
    if inputs["attention_mask"].all():
        tensors["attention_mask"] = None
    return tensors


def task_runner(model: nn.Module) -> Runner:
    """Return what runs a fine-tuned model on arrays: `logits`, or `start_logits`, `end_logits`."""

    @torch.inference_mode()
    def run(inputs: Arrays) -> Mapping[str, NDArray[np.float32]]:
        output: Any = model(**_tensors(inputs), return_dict=True)
        names = [name for name in ("logits", "start_logits", "end_logits") if name in output]
        return {name: output[name].float().numpy() for name in names}

    return run
