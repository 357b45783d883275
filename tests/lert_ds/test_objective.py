"""The contract of a training: a batch that moves whole, and tuples that hooks can walk."""

import torch

from lert_ds.objective import Batch, StepOutput


def batch(mask: torch.Tensor | None) -> Batch:
    return Batch(
        input_ids=torch.arange(8).reshape(2, 4),
        attention_mask=mask,
        masked_positions=torch.tensor([1, 6]),
        labels=torch.tensor([5, 7]),
        tags={"pos": torch.tensor([0, 255]), "dep": torch.tensor([3, 1])},
    )


def test_every_tensor_of_a_batch_moves() -> None:
    moved = batch(torch.ones(2, 4, dtype=torch.bool)).to(torch.device("meta"))
    tensors = [moved.input_ids, moved.attention_mask, moved.masked_positions, moved.labels]
    tensors += list(moved.tags.values())
    assert [tensor.device.type for tensor in tensors if tensor is not None] == ["meta"] * 6
    assert list(moved.tags) == ["pos", "dep"]


def test_a_batch_without_padding_stays_without_a_mask() -> None:
    moved = batch(None).to(torch.device("cpu"))
    assert moved.attention_mask is None
    assert torch.equal(moved.input_ids, batch(None).input_ids)


def test_both_are_tuples_which_zero_3_hooks_walk() -> None:
    assert isinstance(batch(None), tuple)
    output = StepOutput(torch.tensor(1.0), {"loss": torch.tensor([1.0, 1.0])})
    assert isinstance(output, tuple)
    assert output[0] is output.loss
