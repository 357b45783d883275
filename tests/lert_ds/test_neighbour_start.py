from typing import Any

import pytest
import torch

from lert_ds.configuration_lert import LertConfig
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.neighbour_start import start_with_neighbours


def started(**changes: Any) -> LertForPreTraining:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=500, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=64, tag_sets=None, **changes,
    )  # fmt: skip
    model = LertForPreTraining(config)
    model.set_attn_implementation("eager")
    start_with_neighbours(model)
    return model.eval()


def test_heads_start_at_their_distances() -> None:
    ids = torch.randint(5, 500, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        attentions = started()(ids, output_attentions=True).attentions
    for layer in (0, 1):
        for head, distance in enumerate((-1, 1, -2, 2)):
            looked_at = attentions[layer][:, head].argmax(-1)  # [instances, length]
            places = torch.arange(4, 60)
            hits = (looked_at[:, 4:60] == places + distance).float().mean()
            assert hits > 0.9, (layer, head, hits)


def test_a_kept_token_predicts_itself() -> None:
    ids = torch.randint(5, 500, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hits = (started()(ids).logits.argmax(-1) == ids).float().mean()
        plain = LertForPreTraining(started().config).eval()
        missed = (plain(ids).logits.argmax(-1) == ids).float().mean()
    assert hits > 0.9
    assert missed < hits


@pytest.mark.parametrize("heads", [2, 8, 16])
def test_any_shape_can_start_so(heads: int) -> None:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=heads,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    model = LertForPreTraining(config)
    start_with_neighbours(model)
    logits = model(torch.randint(5, 50, (2, 16))).logits
    assert torch.isfinite(logits).all()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
