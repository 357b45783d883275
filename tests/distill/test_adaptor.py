import torch

from distill.adaptor import PretrainingAdaptor
from lert_ds.labels import IGNORE_INDEX
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LertLoss, LipConfig


def make_adaptor(**weights: float) -> PretrainingAdaptor:
    return PretrainingAdaptor(LertLoss(LipConfig(pos=0.25, ner=0.5), 100), weights)


def test_a_task_is_asked_as_much_as_its_schedule_says() -> None:
    adaptor = make_adaptor(pos=2.0, ner=0.5)
    assert adaptor.head_weights(0) == {"mlm": 1.0, "pos": 0.0, "ner": 0.0}
    assert adaptor.head_weights(10) == {"mlm": 1.0, "pos": 2.0 * 0.4, "ner": 0.5 * 0.2}
    assert adaptor.head_weights(100) == {"mlm": 1.0, "pos": 2.0, "ner": 0.5}


def test_an_unknown_tag_is_no_label_while_token_255_is_one() -> None:
    batch = Batch(
        input_ids=torch.zeros(1, 4, dtype=torch.int64),
        attention_mask=None,
        masked_positions=torch.tensor([1, 2]),
        labels=torch.tensor([IGNORE_INDEX, 7]),
        tags={"pos": torch.tensor([3, IGNORE_INDEX])},
    )
    labels = make_adaptor().labels(batch)
    assert labels["mlm"].tolist() == [IGNORE_INDEX, 7]
    assert labels["pos"].tolist() == [3, -1]
