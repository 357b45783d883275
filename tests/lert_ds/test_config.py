"""Configurations: what wins over what, and that every mistake is told by its key."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from lert_ds import config
from lert_ds.config import Config, Paths
from lert_ds.errors import ConfigError, UserError


class Schedule(Config):
    """A nested table."""

    kind: Literal["linear", "cosine"] = "linear"
    """How the rate
    falls."""
    warmup_steps: int = 10
    """Steps of warm-up."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps = {self.warmup_steps}: must be 0 or more")
        return self


class Local(Config):
    """One branch of a union."""

    kind: Literal["local"] = "local"
    """Here."""
    workers: int = 1
    """Processes."""


class Slurm(Config):
    """The other branch."""

    kind: Literal["slurm"]
    """There."""
    partition: str
    """Where."""


class Run(Config):
    """The root."""

    output: Path
    """Folder to write."""
    steps: int = 5
    """Steps of the run."""
    rate: float = 1e-4
    """Learning rate."""
    resume: bool = True
    """Go on."""
    seed: int = Field(3, ge=0)
    """Of everything."""
    name: str | None = None
    """Its name."""
    corpus: Paths = ()
    """Where from."""
    schedule: Schedule = Schedule()
    """The rate."""
    other: Schedule | None = None
    """Perhaps a table."""
    phases: tuple[Schedule, ...] = ()
    """Several tables."""
    executor: Annotated[Local | Slurm, Field(discriminator="kind")] = Local()
    """A choice of tables."""
    layers: int | Literal["all"] = "all"
    """How many."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.steps > 1000:
            raise ValueError(f"steps = {self.steps}: 1000 at most")
        return self


def refusal(text: str, tmp_path: Path, *overrides: str) -> str:
    """Return the message that refuses a file."""
    path = tmp_path / "run.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(Run, path, overrides)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('output = "runs/a"\nsteps = 6\n[schedule]\nwarmup_steps = 2\n', "utf-8")
    run = config.load(Run, path, ["steps=7", "schedule.kind=cosine"])
    assert run.steps == 7
    assert run.schedule == Schedule(kind="cosine", warmup_steps=2)
    assert (run.output, run.rate, run.seed) == (Path("runs/a"), 1e-4, 3)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("rate=3e-5", "rate", 3e-5),
        ("rate=1", "rate", 1.0),
        ("resume=false", "resume", False),
        ("steps=1_000", "steps", 1000),
        ("name=first run", "name", "first run"),
        ('name="quoted"', "name", "quoted"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("output=runs/a-b.c", "output", Path("runs/a-b.c")),
        ("corpus=one", "corpus", (Path("one"),)),
        ('corpus=["one", "two"]', "corpus", (Path("one"), Path("two"))),
        ("other.kind=cosine", "other", Schedule(kind="cosine")),
        ("layers=4", "layers", 4),
        ("layers=all", "layers", "all"),
    ],
)
def test_overrides_are_toml_values_or_bare_words(override: str, key: str, value: object) -> None:
    assert getattr(config.load(Run, None, ["output=x", override]), key) == value


@pytest.mark.parametrize("override", ["steps", "=5"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"write an override as key\.path=value"):
        config.load(Run, None, ["output=x", override])


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"steps\.more=1: steps is a value, not a table"):
        config.load(Run, None, ["output=x", "steps=1", "steps.more=1"])


def test_a_configuration_is_frozen() -> None:
    run = Run(output=Path("x"))
    with pytest.raises(ValidationError):
        run.steps = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 5", "unknown key stepz (did you mean steps?)"),
        ("[schedule]\nwarmup_step = 5", "unknown key schedule.warmup_step (did you mean warmup_"),
        ("[other]\nwarmup_step = 5", "unknown key other.warmup_step (did you mean warmup_steps?)"),
        ("[[phases]]\nkin = 'cosine'", "unknown key phases.0.kin (did you mean kind?)"),
        ('executor = {kind = "local", worker = 2}', "executor.worker (did you mean workers?)"),
        ("[schedule]\nzzz = 5", "unknown key schedule.zzz (there are: kind, warmup_steps)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_of_its_table(
    text: str, message: str, tmp_path: Path
) -> None:
    assert message in refusal(f'output = "x"\n{text}\n', tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('steps = "5"', "steps = '5': a whole number is needed"),
        ("steps = 5.5", "steps = 5.5: a whole number is needed"),
        ("steps = true", "steps = True: a whole number is needed"),
        ('rate = "fast"', "rate = 'fast': a number is needed"),
        ("resume = 1", "resume = 1: true or false is needed"),
        ("name = 1", "name = 1: text is needed"),
        ("schedule = 5", "schedule = 5: a table of keys is needed"),
        ("corpus = 5", "corpus = 5: a list is needed"),
        ("corpus = ['a', 5]", "corpus.1 = 5: text is needed"),
        ("schedule.kind = 'c'", "schedule.kind = 'c': input should be 'linear' or 'cosine'"),
        ("other.kind = 'c'", "other.kind = 'c': input should be 'linear' or 'cosine'"),
        ("seed = -1", "seed = -1: input should be greater than or equal to 0"),
        ("layers = 'al'", "layers = 'al': a whole number is needed, or input should be 'all'"),
        ("executor.kind = 'slurn'", "expected tags: 'local', 'slurm'"),
    ],
)
def test_a_wrong_value_names_its_key_and_itself(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(f'output = "x"\n{text}\n', tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert refusal("steps = 5", tmp_path) == "output is missing"
    text = 'output = "x"\nexecutor = {kind = "slurm"}'
    assert refusal(text, tmp_path) == "executor.partition is missing"


def test_a_rule_of_a_class_is_told_with_the_key_in_full(tmp_path: Path) -> None:
    assert refusal('output = "x"\nsteps = 1001', tmp_path) == "steps = 1001: 1000 at most"
    expected = "schedule.warmup_steps = -1: must be 0 or more"
    assert refusal('output = "x"\nschedule.warmup_steps = -1', tmp_path) == expected


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = refusal('steps = "5"\n[schedule]\nkinds = "cosine"\n', tmp_path, "seed=x")
    assert message.split("; ") == [
        "output is missing",
        "unknown key schedule.kinds (did you mean kind?)",
        "steps = '5': a whole number is needed",
        "seed = 'x': a whole number is needed",
    ]


def test_bad_toml_names_the_file_and_the_line(tmp_path: Path) -> None:
    message = refusal("steps = 5\nrate = = 1\n", tmp_path)
    assert "not valid TOML" in message
    assert "line 2" in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.toml: not valid TOML"):
        config.load(Run, path)


def test_a_preset_is_found_by_name_and_any_file_by_path(tmp_path: Path) -> None:
    presets = tmp_path / "configs"
    presets.mkdir()
    preset, own = presets / "train-small.toml", tmp_path / "own.toml"
    preset.touch()
    own.touch()
    assert config.find("train-small", [tmp_path / "none", presets]) == preset
    assert config.find(str(own), [presets]) == own
    assert config.find(str(preset), []) == preset


def test_an_unknown_preset_is_refused_with_the_nearest(tmp_path: Path) -> None:
    for name in ("train-small", "prepare"):
        (tmp_path / f"{name}.toml").touch()
    with pytest.raises(ConfigError) as caught:
        config.find("train-smal", [tmp_path])
    assert "train-smal: neither a .toml file nor a preset (did you mean train-small?)" in str(
        caught.value
    )
    assert "the presets are prepare, train-small" in str(caught.value)
    with pytest.raises(ConfigError, match=r"the presets are train-small$"):
        config.find("train-smal", [tmp_path], "train")


def test_null_takes_back_what_a_file_sets(tmp_path: Path) -> None:
    class Limited(Config):
        limit: int | None = 3
        """Of something."""

    path = tmp_path / "a.toml"
    path.write_text("limit = 5\n", "utf-8")
    assert config.load(Limited, path, ["limit=null"]).limit is None
    assert config.load(Limited, path).limit == 5


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file"):
        config.find(str(tmp_path / "none.toml"), [tmp_path])


def test_a_resolved_configuration_loads_again_to_the_same() -> None:
    overrides = ["output=x", 'corpus=["a","b"]', "other.kind=cosine", "rate=3e-5", "name=甲"]
    run = config.load(Run, None, [*overrides, "executor.kind=slurm", "executor.partition=p"])
    tree = json.loads(json.dumps(config.dump(run)))
    assert config.parse(Run, tree, "again") == run
    assert tree["corpus"] == ["a", "b"]


def test_the_description_lists_every_key_with_its_default_and_docstring() -> None:
    lines = [" ".join(line.split()) for line in config.describe(Run).splitlines()]
    assert lines[0] == "output=… Folder to write."
    assert "steps=5 Steps of the run." in lines
    assert "name= Its name." in lines
    assert "corpus=[] Where from." in lines
    assert "schedule.kind=linear How the rate falls." in lines
    assert "other.warmup_steps=10 Steps of warm-up." in lines
    assert "executor.workers=1 Processes." in lines
    assert not [line for line in lines if " " not in line]  # each has its sentence


def test_a_configuration_error_is_the_users() -> None:
    assert issubclass(ConfigError, UserError)


def test_differences_are_told_by_key() -> None:
    before = {"train": {"steps": 10, "rate": 0.1}, "seed": 1, "old": None, "corpus": ["a"]}
    now = {"train": {"steps": 20, "rate": 0.1}, "seed": 1, "corpus": ["a", "b"], "new": {"x": 1}}
    assert config.differences(before, now) == [
        "train.steps: 10 → 20",
        'corpus: ["a"] → ["a", "b"]',
        'new: null → {"x": 1}',
    ]
    assert config.differences(now, now) == []


def test_a_path_may_be_a_default() -> None:
    class Placed(Config):
        where: Path = Path("here")

    assert config.parse(Placed, {}, "test").where == Path("here")
    assert config.parse(Placed, {"where": "there"}, "test").where == Path("there")
