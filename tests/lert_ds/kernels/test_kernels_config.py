import re
import typing
from pathlib import Path

import pytest

from lert_ds.config import parse
from lert_ds.errors import ConfigError
from lert_ds.kernels.kernels_config import KernelsConfig
from lert_ds.pretrain import PretrainRun

PAGE = (Path(__file__).parents[3] / "docs" / "kernels.md").read_text("utf-8")
CHOICES = {
    name: typing.get_args(field.annotation)
    for name, field in KernelsConfig.model_fields.items()
    if typing.get_args(field.annotation)
}


def test_what_is_not_said_is_chosen_for_the_device() -> None:
    config = KernelsConfig()
    autos = {name for name, choices in CHOICES.items() if "auto" in choices}
    assert autos == CHOICES.keys() - {"fp8"}
    assert all(getattr(config, name) == "auto" for name in autos)
    assert (config.fp8, config.cuda_graphs) == ("off", False)


@pytest.mark.parametrize("key", CHOICES)
def test_every_name_can_be_written_and_no_other(key: str) -> None:
    for name in CHOICES[key]:
        assert getattr(parse(KernelsConfig, {key: name}, "test"), key) == name
    with pytest.raises(ConfigError, match=key):
        parse(KernelsConfig, {key: "fastest"}, "test")


def test_every_training_has_it() -> None:
    from distill.run import DistillRun
    from lert_ds.finetune.run import FinetuneRun
    from prune.recover import RecoverRun

    for run in (PretrainRun, DistillRun, RecoverRun, FinetuneRun):
        assert run.model_fields["kernels"].annotation is KernelsConfig, run


@pytest.mark.parametrize("key", KernelsConfig.model_fields)
def test_the_page_has_every_key_and_what_each_name_does(key: str) -> None:
    (row,) = re.findall(rf"^\| `kernels\.{key}` \|.*$", PAGE, re.MULTILINE)
    for name in CHOICES.get(key, ("true", "false")):
        assert f"`{name}`" in row, name


def test_the_page_names_no_other_key() -> None:
    assert set(re.findall(r"kernels\.(\w+)[`=]", PAGE)) == KernelsConfig.model_fields.keys()
