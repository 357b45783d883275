"""The configuration of a preparation and its presets."""

from pathlib import Path

import pytest

from lert_ds import config
from lert_ds.corpus.settings import MACHINE_KEYS, ExecutorConfig, PrepareConfig
from lert_ds.errors import ConfigError
from lert_ds.prepare import PRESETS


@pytest.mark.parametrize("path", sorted(PRESETS.glob("prepare-*.toml")), ids=lambda p: p.stem)
def test_every_preset_loads(path: Path) -> None:
    loaded = config.load(PrepareConfig, path)
    assert loaded.work.name == f"{loaded.output.name}.work"


def test_there_are_presets() -> None:
    names = {path.stem for path in PRESETS.glob("prepare-*.toml")}
    assert {"prepare-quickstart", "prepare-quickstart-annotated", "prepare-lert"} <= names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_lenght=5", r"unknown key max_lenght \(did you mean max_length\?\)"),
        ("max_length=4", "max_length = 4: input should be greater than or equal to 8"),
        ('max_length="512"', "max_length = '512'"),
        ("held_out=1.0", "held_out = 1.0"),
        ("annotator.kind=stanza", "annotator.kind = 'stanza': .*'jieba', 'ltp'"),
        ("executor.kind=slurm", "executor.partition is missing"),
        ("executor.kind=pbs", "executor.kind = 'pbs'"),
        ("input=[]", "input"),
        ('filters=[{name="x"}]\0annotator.kind=conllu', "filters are for plain text"),
    ],
)
def test_mistakes_name_their_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(PrepareConfig, PRESETS / "prepare-quickstart.toml", override.split("\0"))


def test_what_the_corpus_is_excludes_where_it_is_made() -> None:
    one = config.parse(PrepareConfig, {"input": "a", "output": "b"}, "x")
    other = config.parse(
        PrepareConfig,
        {"input": "a", "output": "c", "overwrite": True, "executor": {"workers": 7}},
        "x",
    )
    assert one.of_the_corpus() == other.of_the_corpus()
    assert not set(MACHINE_KEYS) & one.of_the_corpus().keys()


def test_workers() -> None:
    assert ExecutorConfig(workers=4).tasks_at_once(2) == 2
    assert ExecutorConfig(workers=2).tasks_at_once(9) == 2
    assert ExecutorConfig().tasks_at_once(1000) >= 1
