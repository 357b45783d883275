import pytest
import torch

from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import document_ends
from lert_ds.kernels import attention, documents, varlen
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import masked_logits

SEP, PAD = 3, 0
IDS = torch.tensor([[2, 7, 8, SEP, 9, 10, 11, SEP], [2, 5, SEP, 6, 7, SEP, PAD, PAD]])


def make_model(implementation: str) -> LertForPreTraining:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=8,
    )  # fmt: skip
    model = LertForPreTraining(config).eval()
    model.set_attn_implementation(implementation)
    return model


def make_batch(ids: torch.Tensor, *, parted: bool = True) -> Batch:
    places = torch.arange(ids.numel())
    ends = torch.from_numpy(document_ends(ids.numpy(), SEP)) if parted else None
    return Batch(ids, ids != PAD, places, ids.flatten(), {}, ends)


def test_the_mask_lets_tokens_of_one_document_meet() -> None:
    mask = documents.mask(torch.tensor([4, 8, 11, 14, 16, 16, 16, 16], dtype=torch.int32), 2, 8)
    assert mask.shape == (2, 1, 8, 8)
    first = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()
    second = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3), torch.ones(2, 2)).bool()
    assert torch.equal(mask[0, 0], first)
    assert torch.equal(mask[1, 0], second)


def test_cu_seqlens_begin_at_nothing() -> None:
    ends = torch.tensor([4, 8, 16, 16], dtype=torch.int32)
    assert documents.cu_seqlens(ends).tolist() == [0, 4, 8, 16, 16]
    assert documents.cu_seqlens(ends).dtype == torch.int32


@pytest.mark.parametrize("implementation", ["sdpa", attention.NAME, varlen.NAME])
def test_a_document_does_not_see_what_stands_beside_it(implementation: str) -> None:
    model = make_model(implementation)
    other = IDS.clone()
    other[0, 4:7] = torch.tensor([12, 13, 14])
    with torch.no_grad():
        before = masked_logits(model, make_batch(IDS))["mlm"].view(2, 8, -1)
        after = masked_logits(model, make_batch(other))["mlm"].view(2, 8, -1)
        together = masked_logits(model, make_batch(IDS, parted=False))["mlm"].view(2, 8, -1)
    torch.testing.assert_close(after[0, :4], before[0, :4], rtol=0, atol=1e-6)
    assert not torch.allclose(after[0, 4:], before[0, 4:], atol=1e-3)
    assert not torch.allclose(together[0, :4], before[0, :4], atol=1e-3)


def test_all_kernels_part_documents_alike() -> None:
    with torch.no_grad():
        plain, *others = (
            masked_logits(make_model(name), make_batch(IDS))["mlm"]
            for name in ("sdpa", attention.NAME, varlen.NAME)
        )
    for other in others:
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)


def test_a_batch_without_documents_is_given_its_mask() -> None:
    batch = make_batch(IDS, parted=False)
    found = documents.attention_arguments(make_model("sdpa"), batch)
    assert found == {"attention_mask": batch.attention_mask}
