"""TextBrewer's own training over our batches, as iflytek/MiniRBT runs it.

MiniRBT (`pretraining/train.py`, `utils.py`) gives `GeneralDistiller.train` two `BertForMaskedLM`
that return every hidden state, and the adaptor `MlmAdaptorWithLogitsMask`: logits of the whole
vocabulary at every position, from which TextBrewer selects those that have a label. Here it has two
things more, which MiniRBT leaves out: the loss on the labels, and the mask of padding. MiniRBT's
AdamW has gone from transformers; torch's fused one stands for it.
"""

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import BertForMaskedLM

from lert_ds.objective import Batch

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # `is not 'none'`, when it is compiled
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

Losses = list[dict[str, float]]
"""Step to name to value, TextBrewer's names; the weighted sum is `total`."""


class Distiller(GeneralDistiller):  # type: ignore[misc]
    """TextBrewer's, which keeps the losses instead of drawing them, and writes no checkpoint."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.losses: Losses = []

    def write_loss(self, total_loss: Any, writer_step: int, losses_dict: Any = None) -> None:
        """Keep the losses of a micro-batch."""
        named = {"total": total_loss, **losses_dict}
        self.losses.append({name: loss.item() for name, loss in named.items()})

    def save_and_callback(self, *arguments: Any) -> None:
        """Save nothing."""


def adapt_teacher(batch: dict[str, torch.Tensor], output: Any) -> dict[str, Any]:
    """Return what TextBrewer takes of a teacher: MiniRBT's `MlmAdaptorWithLogitsMask`."""
    return {
        "logits": output["logits"],
        "hidden": output["hidden_states"],
        "logits_mask": torch.ge(batch["labels"], -1),
    }


def adapt_student(batch: dict[str, torch.Tensor], output: Any) -> dict[str, Any]:
    """Return the same of a student, the loss on the labels, and where tokens are real."""
    mask = batch.get("attention_mask")
    return {**adapt_teacher(batch, output), "losses": output["loss"], "inputs_mask": mask}


def distiller(teacher: Path, student: Path, distillation: dict[str, Any]) -> Distiller:
    """Return TextBrewer's distiller of two model folders, on the CPU in fp32.

    Args:
        teacher: A model folder.
        student: A model folder: its shape and its first weights.
        distillation: Arguments of TextBrewer's `DistillationConfig`.
    """
    models = [
        BertForMaskedLM.from_pretrained(folder, output_hidden_states=True)
        for folder in (teacher, student)
    ]
    with tempfile.TemporaryDirectory() as folder:  # it insists on making one
        training = TrainingConfig(ckpt_steps=1, output_dir=folder, device="cpu")
    return Distiller(
        training, DistillationConfig(**distillation), *models, adapt_teacher, adapt_student
    )


def train(
    distiller: Distiller,
    batches: Iterable[Batch],
    steps: int,
    *,
    learning_rate: float,
    largest_norm: float,
) -> Losses:
    """Run `GeneralDistiller.train` and return its losses.

    Args:
        distiller: Of `distiller`.
        batches: One a step.
        steps: How many.
        learning_rate: Of every step.
        largest_norm: The gradient of the student is clipped to it; -1 does not clip.
    """
    weights = distiller.model_S.parameters()
    # No decay: TextBrewer would give it to the biases of projections, and to those alone.
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0, fused=True)
    with distiller:
        distiller.train(
            optimizer,
            dataloader=map(dense, batches),
            num_steps=steps,
            max_grad_norm=largest_norm,
        )
    return distiller.losses


def dense(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch as `BertForMaskedLM` takes it: a label at every position, -100 for none."""
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.masked_positions] = batch.labels
    inputs = {"input_ids": batch.input_ids, "labels": labels}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask.long()
    return inputs
