"""The comparison: exact figures on made-up outputs, and what it is there to notice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertTokenizer

from lert_ds.errors import ConfigError
from prune.export.check import Inputs, Outputs, Reference, make_batches

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好，明再见。"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    return BertTokenizer.from_pretrained(tmp_path)


@pytest.fixture
def batches(tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    return make_batches(tokenizer, "今天天气很好，明天再见。", 32, mask=True)


def model_like(inputs: Inputs, noise: float = 0.0) -> NDArray[np.float32]:
    """Return [batch, length, 5] that depends on the token, and on how many the mask lets it see."""
    ids = inputs["input_ids"].numpy()
    seen = inputs["attention_mask"].numpy().sum(1)[:, None]
    values = np.stack([np.sin(ids * k + seen) for k in range(1, 6)], -1)
    generator = np.random.default_rng(0)
    return (values + noise * generator.standard_normal(values.shape)).astype(np.float32)


def whole(inputs: Inputs) -> Outputs:
    return {"logits": model_like(inputs)}


def test_batches_are_real_text_with_padding(tokenizer: Any) -> None:
    made = make_batches(tokenizer, "今天", 32, mask=True, masked_positions=True)
    assert {len(batch["input_ids"]) for batch in made} == {1, 2, 4}
    assert max(batch["input_ids"].shape[1] for batch in made) == 32
    for batch in made:
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        lengths = real.sum(1)
        assert (ids[:, 0] == 2).all()
        assert (ids[torch.arange(len(ids)), lengths - 1] == 3).all()
        assert (ids[~real] == 0).all()
        assert set(ids[real].tolist()) <= {2, 3, 4, 5, 6}
        masked = ids.flatten()[batch["masked_positions"]]
        assert (masked == 4).all()
        assert len(masked) == int((ids == 4).sum())
        assert ((ids == 4).sum(1) >= 1).all()
        if len(ids) > 1:
            assert len(set(lengths.tolist())) == len(ids)
            assert batch["token_type_ids"][1].any()
        assert not (batch["token_type_ids"].bool() & ~real).any()
    flat = make_batches(tokenizer, "今天", 32, token_types=1)
    assert not any(
        batch["token_type_ids"].any() or (batch["input_ids"] == 4).any() for batch in flat
    )


def test_text_without_pieces(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="nothing in it to compare on"):
        make_batches(tokenizer, " ", 32)


def test_the_same_is_no_difference(batches: Any) -> None:
    (found,) = Reference(batches, whole).compare(whole).values()
    assert (found.largest, found.relative, found.relative_padded, found.agreement) == (0, 0, 0, 1)
    assert not found.ignores_mask


def test_figures_of_the_worst_row(batches: Any) -> None:
    def off(inputs: Inputs) -> Outputs:
        values = model_like(inputs)
        if len(values) == 4:
            values[2, : int(inputs["attention_mask"][2].sum())] += 0.5  # a padded row
            values[0] += 0.25
            values[3, int(inputs["attention_mask"][3].sum()) :] = 1e6  # padding counts for nothing
        return {"logits": values}

    spread = np.concatenate(
        [model_like(b)[b["attention_mask"].bool().numpy()].ravel() for b in batches]
    ).std()
    (found,) = Reference(batches, whole).compare(off).values()
    assert found.largest == pytest.approx(0.5, abs=1e-6)
    assert found.relative == pytest.approx(0.5 / spread, rel=1e-4)
    assert found.relative_padded == found.relative
    assert found.agreement == 1.0


def test_what_is_not_a_number_is_no_agreement(batches: Any) -> None:
    (found,) = (
        Reference(batches, whole)
        .compare(lambda inputs: {"logits": model_like(inputs) * np.float32("nan")})
        .values()
    )
    assert not found.relative <= 1e9


def test_agreement_is_a_share_of_positions(batches: Any) -> None:
    def reversed_in_one(inputs: Inputs) -> Outputs:
        values = model_like(inputs)
        return {"logits": values if len(values) != 2 else -values}

    (found,) = Reference(batches, whole).compare(reversed_in_one).values()
    counts = [int(batch["attention_mask"].sum()) for batch in batches]
    assert found.agreement == pytest.approx(1 - counts[-1] / sum(counts))
    (found,) = Reference(batches, whole).compare(whole, classes=False).values()
    assert found.agreement is None


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_graph_that_ignores_the_mask_is_told_through_the_noise(
    batches: Any, noise: float
) -> None:
    def blind(inputs: Inputs) -> Outputs:
        ones = torch.ones_like(inputs["attention_mask"])
        return {"logits": model_like({**inputs, "attention_mask": ones}, noise)}

    reference = Reference(batches, whole)
    (found,) = reference.compare(blind).values()
    assert found.ignores_mask
    (found,) = reference.compare(lambda inputs: {"logits": model_like(inputs, noise)}).values()
    assert not found.ignores_mask


def test_outputs_of_every_kind(tokenizer: Any) -> None:
    made = make_batches(tokenizer, "今天天气", 32, mask=True, masked_positions=True)

    def masked(inputs: Inputs, shift: float = 0.0) -> Outputs:
        values = model_like(inputs)
        values[0] += shift * (len(values) == 4)  # a row without padding, of several
        return {"logits": values.reshape(-1, 5)[inputs["masked_positions"].numpy()]}

    (found,) = Reference(made, masked).compare(lambda inputs: masked(inputs, 0.5)).values()
    assert found.largest == pytest.approx(0.5, abs=1e-6)
    spread = np.concatenate([masked(batch)["logits"] for batch in made]).std()
    assert found.relative == pytest.approx(0.5 / spread, rel=1e-4)
    assert found.relative_padded == 0
    plain = [{k: v for k, v in b.items() if k != "masked_positions"} for b in made]
    (found,) = (
        Reference(plain, lambda b: {"logits": model_like(b)[:, 0]})
        .compare(lambda b: {"logits": model_like(b)[:, 0] + np.float32(0.5)})
        .values()
    )
    assert found.largest == pytest.approx(0.5, abs=1e-6)

    def spans(inputs: Inputs, padding: float = 0.0) -> Outputs:
        scores = model_like(inputs)[:, :, 0]
        return {"start_logits": scores + padding * (1 - inputs["attention_mask"].numpy())}

    (found,) = Reference(plain, spans).compare(lambda b: spans(b, 1e6)).values()
    assert (found.largest, found.agreement) == (0, 1)
