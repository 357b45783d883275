import pytest

from distill.task_adaptor import TaskAdaptor
from lert_ds.finetune.objective import TaskLoss
from lert_ds.finetune.tasks import Kind


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("classification", {"label": 1.0}),
        ("entities", {"tag": 1.0}),
        ("spans", {"start": 0.5, "end": 0.5}),
    ],
)
def test_the_heads_share_one_weight(kind: Kind, weights: dict[str, float]) -> None:
    adaptor = TaskAdaptor(TaskLoss(kind))
    assert adaptor.head_weights(0) == adaptor.head_weights(99) == weights
    assert adaptor.summary({"f1": 1.0}) == {"f1": 1.0}
