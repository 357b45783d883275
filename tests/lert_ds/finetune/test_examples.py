import json

from lert_ds.finetune.examples import Answer, EntityExample, SpanExample, TextExample


def test_examples_compare_by_what_they_hold() -> None:
    assert TextExample("甲", None, 1) == TextExample("甲", None, 1) != TextExample("甲", "", 1)
    assert EntityExample(("甲",), (0,)) != EntityExample(("甲",), (1,))
    one = SpanExample("Q", "谁", "甲", (Answer("甲", 0),))
    assert one._replace(answers=(Answer("甲", None),)) != one


def test_examples_are_plain_values() -> None:
    """They can be written down, and they hash: a context is cut into tokens once."""
    examples = [TextExample("甲", None, 1), SpanExample("Q", "谁", "甲", (Answer("甲", 0),))]
    assert json.loads(json.dumps(examples)) == [["甲", None, 1], ["Q", "谁", "甲", [["甲", 0]]]]
    assert len({*examples, *examples}) == 2
