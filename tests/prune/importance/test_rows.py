"""What a batch asks, and whose the rows are."""

from typing import Any

import pytest
import torch

from lert_ds.configuration_lert import LertConfig
from lert_ds.finetune.batches import TaskBatch
from lert_ds.finetune.features import UNKNOWN
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.tasks import Kind
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LertLoss, LipConfig, masked_logits
from prune.importance.rows import losses, masked_rows, mean_loss, task_rows

SHAPE = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 16,
}  # fmt: skip


def test_masked_rows_give_the_loss_of_lert() -> None:
    torch.manual_seed(0)
    model = LertForPreTraining(LertConfig(**SHAPE, tag_sets={"pos": ["a", "b"], "dep": ["x"]}))
    batch = Batch(
        torch.randint(5, 30, (2, 8)),
        None,
        torch.tensor([1, 3, 12]),
        torch.tensor([7, 8, 9]),
        {"pos": torch.tensor([0, 255, 1])},
    )
    rows = masked_rows(("pos", "dep"))(model.eval(), batch)
    assert rows.examples.tolist() == [0, 0, 1]
    assert rows.labels["pos"].tolist() == [0, UNKNOWN, 1]
    assert rows.labels["dep"].tolist() == [UNKNOWN] * 3  # a head without tags in the batch
    loss = LertLoss(LipConfig(tasks=("pos",)), 1)
    wanted = loss(masked_logits(model, batch), batch, step=1, evaluating=False)
    assert torch.equal(mean_loss(rows), wanted.loss)
    assert torch.equal(losses(rows)["mlm"], wanted.metrics["mlm/loss"])


LABELS: dict[str, Any] = {
    "classification": torch.tensor([1, UNKNOWN, 0]),
    "entities": torch.tensor([[UNKNOWN, 1, 2, UNKNOWN], [UNKNOWN] * 4, [UNKNOWN, 0, 0, 1]]),
    "spans": torch.tensor([[1, 2], [UNKNOWN, UNKNOWN], [0, 0]]),
}
EXAMPLES = {
    "classification": [0, 2],
    "entities": [0, 0, 2, 2, 2],
    "spans": [0, 2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_a_task_are_those_with_a_label(kind: Kind) -> None:
    torch.manual_seed(0)
    names = {0: "a", 1: "b"} if kind == "spans" else {0: "a", 1: "b", 2: "c"}
    model = KINDS[kind].model(LertConfig(**SHAPE, id2label=names)).eval()
    ids = torch.randint(5, 30, (3, 4))
    batch = TaskBatch(ids, None, torch.zeros_like(ids), LABELS[kind], torch.tensor([0, -1, 1]))
    rows = task_rows(kind)(model, batch)
    assert rows.examples.tolist() == EXAMPLES[kind]
    for head, logits in rows.logits.items():
        assert len(logits) == len(rows.labels[head]) == len(rows.examples)
        assert not (rows.labels[head] == UNKNOWN).any()
    assert mean_loss(rows) > 0
