import pytest

from lert_ds.config import parse
from lert_ds.errors import ConfigError
from lert_ds.finetune.settings import TaskConfig


def test_a_name_is_enough() -> None:
    settings = parse(TaskConfig, {"name": "ocnli"}, "test")
    assert (settings.train, settings.dev, settings.test) == (None, None, None)
    assert settings.held_out == 0.1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("held_out", 1.0), ("held_out", -0.1), ("max_length", 15), ("stride", -1),
        ("question_length", 0), ("answer_length", 0),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key} = {value}"):
        parse(TaskConfig, {"name": "ocnli", key: value}, "test")


def test_a_task_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="name is empty; name a task"):
        parse(TaskConfig, {"name": ""}, "test")
    with pytest.raises(ConfigError, match="name is missing"):
        parse(TaskConfig, {}, "test")
    with pytest.raises(ConfigError, match=r"unknown key lenght"):
        parse(TaskConfig, {"name": "ocnli", "lenght": 3}, "test")
