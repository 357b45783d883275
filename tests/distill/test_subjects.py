"""Both subjects are tested by whole distillations: test_run.py and test_task_distillation.py."""

from pathlib import Path
from typing import Any

import pytest

from distill.subjects import OnTask
from lert_ds.errors import ModelError
from lert_ds.finetune.settings import TaskConfig
from lert_ds.modeling_lert import LertForTokenClassification


def test_a_task_says_which_models_it_needs(
    write_task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, "msra", 12)
    subject = OnTask.open(TaskConfig(name="msra", data=tmp_path), str(tiny_model))
    assert subject.model_class is LertForTokenClassification
    assert subject.best_by == "f1"
    assert subject.facts.instances == len(subject.data.train.features)
    with pytest.raises(ModelError, match="its classes are LABEL_0, LABEL_1"):
        subject.check_teacher(str(tiny_model))
