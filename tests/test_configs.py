"""Every configuration that ships loads, and the table of DeepSpeed's files tells the truth."""

import argparse
import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest

from lert_ds import cli, config

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / package / "configs" for package in ("lert_ds", "distill", "prune")]
PRESETS = sorted(path for folder in FOLDERS for path in folder.glob("*.toml"))
JSON_FILES = sorted((ROOT / "ds_configs").glob("*.json"))
README = (ROOT / "ds_configs/README.md").read_text("utf-8")


def load(path: Path) -> config.Config:
    """Return a preset as its command, the first word of its name, would read it."""
    command = path.stem.split("-")[0]
    assert command in cli.COMMANDS, f"{path.name}: no command {command}"
    parser = argparse.ArgumentParser()
    importlib.import_module(cli.COMMANDS[command][0]).add_arguments(parser)
    assert parser.get_default("preset_folder") == path.parent
    overrides = ["model=given/on/the/command/line"] if command == "finetune" else []
    loaded = config.load(parser.get_default("config_class"), path, overrides)
    assert isinstance(loaded, config.Config)
    return loaded


def test_presets_ship() -> None:
    names = {path.stem for path in PRESETS}
    files = [path for folder in FOLDERS for path in folder.glob("*")]
    assert len(names) == len(PRESETS) == len(files)  # nothing else lies there
    assert names >= {
        "prepare-quickstart",
        "prepare-lert",
        "pretrain-quickstart",
        "pretrain-small",
        "pretrain-base",
        "pretrain-large",
        "pretrain-large-128",
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_comes_back_from_its_record(path: Path) -> None:
    loaded = load(path)
    assert config.parse(type(loaded), config.dump(loaded), "record") == loaded


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_says_what_it_is_for(path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


TRAININGS = [path for path in PRESETS if "[train]" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_every_training_names_a_deepspeed_file_that_fits_it(path: Path) -> None:
    run = config.dump(load(path))
    train = run["train"]
    if run["deepspeed"] != "auto":  # of fine-tuning: by the machine
        assert run["deepspeed"].startswith("ds_configs/")
        assert (ROOT / run["deepspeed"]).is_file()
    assert train["batch_size"] % train["micro_batch_size"] == 0


def test_there_are_trainings() -> None:
    assert len(TRAININGS) >= 5


def test_the_published_run_has_the_published_numbers() -> None:
    run = config.dump(load(ROOT / "lert_ds/configs/pretrain-large.toml"))
    train = run["train"]
    assert (train["steps"], train["batch_size"], train["learning_rate"]) == (2_000_000, 1024, 1e-4)
    assert (run["schedule"]["kind"], run["schedule"]["warmup_steps"]) == ("linear", 10_000)
    assert {task: round(run["lip"][task] * train["steps"]) for task in ("pos", "ner", "dep")} == {
        "pos": 333_000,
        "ner": 666_000,
        "dep": 1_000_000,
    }
    optimizer = run["optimizer"]
    assert (optimizer["name"], optimizer["bias_correction"]) == ("adamw", False)
    assert run["architecture"]["size"] == "large"


def rows_of_the_tables() -> dict[str, list[str]]:
    """Return the cells of the README's rows, by the first, without its back quotes."""
    rows = [line.strip("|").split("|") for line in README.splitlines() if line.startswith("| ")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_the_table_has_every_file_once_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+\.json)` \|", README, re.MULTILINE)
    assert sorted(listed) == [path.name for path in JSON_FILES]
    assert len(JSON_FILES) > 0


def test_every_file_that_the_readme_mentions_is_there() -> None:
    mentioned = set(re.findall(r"\b(?:zero\d|cpu)_\w+\.json\b", README))
    assert mentioned == {path.name for path in JSON_FILES}


def test_the_figures_are_those_that_the_command_beside_them_prints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "ds_configs/README.md", "exec"), {})
    rows = rows_of_the_tables()
    lines = printed.getvalue().splitlines()
    assert len(lines) == len(JSON_FILES) + 2
    for line in lines[:-2]:
        name, *figures = line.split(" | ")
        assert rows[name][2:] == figures, name
    for line, name in zip(
        lines[-2:], ("fp32", "bf16, fp16, about the same in autocast"), strict=True
    ):
        # The formula's table has a row fp32 too: look the line up as it stands.
        assert f"| {name} | {' | '.join(line.split(' | ')[1:])} |\n" in README


def test_the_parameters_of_the_table_are_those_of_lert_large() -> None:
    import torch

    from lert_ds.configuration_lert import LertConfig
    from lert_ds.labels import LTP_TAGS
    from lert_ds.modeling_lert import LertForPreTraining

    model_config = LertConfig(
        vocab_size=21_128,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in LertForPreTraining(model_config).parameters())
    assert f"{count:_}" in README
    assert f"{count / 1e6:.1f} M parameters" in README


def test_the_extra_memory_of_attention_on_a_cpu() -> None:
    assert f"{12 * 24 * 16 * 8 * 512**2 / 2**30:.0f} GiB in this example" in README
