from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from lert_ds.finetune.batches import collate
from lert_ds.finetune.features import UNKNOWN, Feature
from lert_ds.finetune.kinds import KINDS, cross_entropy
from lert_ds.finetune.tasks import TASKS, Kind
from lert_ds.modeling_lert import AUTO_CLASSES


def test_there_is_a_row_for_every_kind() -> None:
    assert set(KINDS) == set(get_args(Kind)) == {task.kind for task in TASKS.values()}
    # Else its model folder could not be loaded by transformers.
    assert all(kind.model in AUTO_CLASSES.values() for kind in KINDS.values())


def test_cross_entropy_is_a_sum_and_a_count_of_known_rows() -> None:
    torch.manual_seed(0)
    rows, labels = torch.randn(6, 4), torch.tensor([0, UNKNOWN, 3, 1, UNKNOWN, 2])
    known = labels != UNKNOWN
    expected = -rows.log_softmax(-1)[known, labels[known]].sum()
    total, count = cross_entropy({"tag": rows}, {"tag": labels})
    assert total.item() == pytest.approx(expected.item())
    assert count == 4
    # Of two heads, the sum and the count of both: the mean over all is the mean of their means.
    other = torch.tensor([1, 2, 0, 0, 3, UNKNOWN])
    of_other, of_them = cross_entropy({"end": rows}, {"end": other})
    both, count = cross_entropy({"a": rows, "end": rows}, {"a": labels, "end": other})
    assert (both.item(), count.item()) == (pytest.approx((total + of_other).item()), 4 + of_them)


def test_cross_entropy_of_half_precision_is_exact_for_its_logits() -> None:
    rows, labels = 30 * torch.randn(64, 400).bfloat16(), torch.arange(64)
    half, _ = cross_entropy({"x": rows}, {"x": labels})
    exact, _ = cross_entropy({"x": rows.double()}, {"x": labels})
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("lengths", [(4, 6), (5, 5)])
def test_padding_can_be_no_answer(lengths: tuple[int, int]) -> None:
    features = [Feature(np.ones(n, np.int32), 2, (0, 0), 0) for n in lengths]
    batch = collate(features, [0, 1], 0)
    width = batch.input_ids.shape[1]
    output: Any = QuestionAnsweringModelOutput(
        start_logits=torch.zeros(2, width), end_logits=torch.ones(2, width)
    )
    starts, ends = KINDS["spans"].outputs(output, batch)
    for row, length in enumerate(lengths):
        assert starts[row, :length].tolist() == [0.0] * length
        assert ends[row, :length].tolist() == [1.0] * length
        assert (starts[row, length:].half().exp() == 0).all()
