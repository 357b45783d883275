from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.errors import ModelError
from lert_ds.finetune.kinds import KINDS, run_model
from lert_ds.finetune.seed_run import load
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import TaskData, open_task
from lert_ds.finetune.task_evaluation import evaluate, evaluate_model, refuse_other_labels
from lert_ds.finetune.tasks import TASKS


@pytest.fixture
def opened(tiny_model: Path, task_files: Path) -> Callable[[str], TaskData]:
    """Open a task for the tiny model."""

    def make(name: str) -> TaskData:
        config = model_dir.read_config(tiny_model)
        return open_task(TaskConfig(name=name, data=task_files), tiny_model, config)

    return make


@pytest.mark.parametrize("name", ["ocnli", "peopledaily", "drcd"])
def test_a_model_is_judged_on_every_example_and_keeps_its_mode(
    opened: Any, tiny_model: Path, name: str
) -> None:
    data = opened(name)
    torch.manual_seed(0)
    model = load(str(tiny_model), data.task).train()
    values, predictions = evaluate_model(model, data, data.dev)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(predictions) == len(data.dev.examples)
    assert set(values) >= {data.task.score, *data.task.metrics}
    assert all(0 <= value <= 1 for value in values.values())
    # Dropout is out, so the same once more; and row by row, without padding, the same answers.
    assert evaluate_model(model, data, data.dev) == (values, predictions)
    model.eval()
    calls = []

    def one_by_one(batch: Any) -> Any:
        calls.append(len(batch.input_ids))
        with torch.no_grad():
            return run_model(model, KINDS[data.task.kind], batch)

    assert evaluate(one_by_one, data, data.dev) == (values, predictions)
    assert sum(calls) == len(data.dev.features)


def test_right_logits_of_any_model_score_one(opened: Any) -> None:
    data = opened("ocnli")
    labels = torch.tensor([example.label for example in data.dev.examples])

    def run(batch: Any) -> tuple[torch.Tensor, ...]:
        return (torch.nn.functional.one_hot(labels[batch.features], 3).float(),)

    values, predictions = evaluate(run, data, data.dev)
    assert values == {"accuracy": 1.0}
    assert predictions == labels.tolist()


def test_labels_of_another_task_are_refused() -> None:
    ocnli = TASKS["ocnli"]
    names = dict(enumerate(ocnli.labels))
    refuse_other_labels("m", names, ocnli)
    refuse_other_labels("m", names, TASKS["xnli"])  # of the same classes
    refuse_other_labels("m", {0: "first", 1: "last"}, TASKS["drcd"])
    refuse_other_labels("m", None, TASKS["drcd"])
    message = "m: its classes are entailment, neutral, contradiction, those of BQ Corpus 0, 1; name"
    with pytest.raises(ModelError, match=message):
        refuse_other_labels("m", names, TASKS["bq"])
    with pytest.raises(ModelError, match="its classes are neutral, entailment, contradiction"):
        refuse_other_labels("m", {0: names[1], 1: names[0], 2: names[2]}, ocnli)
    with pytest.raises(ModelError, match="its classes are none, those of OCNLI entailment"):
        refuse_other_labels("m", None, ocnli)
