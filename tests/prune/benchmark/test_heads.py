"""What columns compute, and which may stand side by side."""

import pytest

from lert_ds.errors import ConfigError
from prune.benchmark.heads import OF_KIND, SCORES, head_of, refuse_others


def test_heads_by_the_class_of_a_config() -> None:
    assert head_of(["LertForQuestionAnswering"]) == "question_answering"
    assert head_of(["BertForTokenClassification"]) == "token_classification"
    assert head_of(["LertForPreTraining"]) == head_of(["BertForMaskedLM"]) == "mlm"
    assert head_of(["LertModel"]) == "encoder"
    assert head_of(["Unknown"]) == head_of([]) == head_of(None) == "mlm"
    assert set(SCORES) == set(OF_KIND.values())


def test_columns_of_one_kind_pass() -> None:
    refuse_others([("a", "mlm"), ("b", "mlm")], None)
    refuse_others([("a", "question_answering")], "spans")


def test_others_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"models: a is a model for mlm and b one for question_"):
        refuse_others([("a", "mlm"), ("b", "question_answering")], None)
    with pytest.raises(ConfigError, match=r"task: b is a model for mlm, and this task is one of"):
        refuse_others([("a", "sequence_classification"), ("b", "mlm")], "classification")
