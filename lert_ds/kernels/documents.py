"""What attention is told of documents that do not see each other: a mask, or where each begins."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lert_ds.kernels import varlen
from lert_ds.objective import Batch


def attention_arguments(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """Return what `model` is given beside the ids of `batch`, so that attention goes where it may.

    Nothing here waits for the device.
    """
    if batch.document_ends is None:
        return {"attention_mask": batch.attention_mask}
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    on_gpu = batch.input_ids.device.type == "cuda"
    if model.config._attn_implementation == varlen.NAME and on_gpu and half:
        return {"attention_mask": None, "cu_seqlens": cu_seqlens(batch.document_ends)}
    return {"attention_mask": mask(batch.document_ends, *batch.input_ids.shape)}


def cu_seqlens(document_ends: Tensor) -> Tensor:
    """Return int32 [documents + 1]: where each document begins, and the end of the last.

    Args:
        document_ends: int32 [documents], as `Batch` has it.
    """
    return torch.nn.functional.pad(document_ends, (1, 0))


def mask(document_ends: Tensor, instances: int, length: int) -> Tensor:
    """Return bool [instances, 1, length, length]: whether two tokens are of one document.

    Args:
        document_ends: int32 [documents], as `Batch` has it.
        instances: Rows.
        length: Tokens of each.
    """
    places = torch.arange(instances * length, device=document_ends.device, dtype=torch.int32)
    document = torch.searchsorted(document_ends, places, right=True).view(instances, length)
    return (document[:, :, None] == document[:, None, :])[:, None]
