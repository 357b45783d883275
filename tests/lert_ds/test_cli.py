"""The command line: exit codes, one-line errors, and help that needs no heavy library."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import lert_ds
from lert_ds import cli
from lert_ds.config import Config
from lert_ds.errors import CorpusError

Run = Callable[..., int]


class FakeConfig(Config):
    """What the fake command is told."""

    steps: int = 3
    """Steps of it."""
    name: str = "none"
    """Its name."""


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "fake-small.toml").write_text("steps = 4\n", "utf-8")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, presets: Path) -> Run:
    """Return a function that runs the command line with a fake command; it returns the code."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    module = ModuleType("fake_command")

    def add_arguments(parser: ArgumentParser) -> None:
        cli.add_config_arguments(parser, FakeConfig, presets)

    def run_command(arguments: Namespace) -> None:
        config = cli.read_config(FakeConfig, arguments)
        if config.name == "user":
            raise CorpusError("corpora/x: it has no manifest; prepare it first")
        if config.name == "ours":
            raise KeyError("our mistake")
        if config.name == "interrupt":
            raise KeyboardInterrupt
        if config.name == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        if config.name == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "runs/x/model.safetensors")
        if arguments.dry_run:
            cli.print_config(config)
        else:
            sys.stdout.write(f"ran {config.steps} {config.name}\n")

    module.__dict__.update(add_arguments=add_arguments, run=run_command)
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", ("fake_command", "nothing to nothing"))

    def call(*words: str) -> int:
        try:
            cli.main(words)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def test_a_command_runs_with_its_preset_and_overrides(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fake", "fake-small", "name=x") == 0
    assert capsys.readouterr().out == "ran 4 x\n"


@pytest.mark.parametrize(
    "words",
    [
        ("fake", "fake-small", "steps=7", "--dry-run"),
        ("fake", "--dry-run", "fake-small", "steps=7"),
        ("fake", "fake-small", "--dry-run", "steps=7"),
    ],
)
def test_an_option_may_stand_anywhere_after_the_command(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(*words) == 0
    assert '"steps": 7' in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--local_rank=0", "--local-rank=1"])
def test_what_the_launcher_puts_before_the_command_is_ignored(
    run: Run, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert run(flag, "fake", "fake-small") == 0
    assert capsys.readouterr().out == "ran 4 none\n"


def test_the_users_mistake_is_one_line_and_2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fake", "fake-small", "name=user") == 2
    output = capsys.readouterr()
    assert output.err == "error: corpora/x: it has no manifest; prepare it first\n"
    assert output.out == ""


def test_a_task_of_srun_knows_its_rank(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"PROCID": "3", "LOCALID": "0", "NODEID": "1", "JOB_ID": "7"}
    step = {"ID": "0", "NUM_TASKS": "4", "TASKS_PER_NODE": "3,1", "NODELIST": "n[1-2]"}
    for name, value in (task | {f"STEP_{name}": value for name, value in step.items()}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    adopted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in adopted:
        monkeypatch.setenv(name, "")  # so that what is adopted does not outlive the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "_exit", sys.exit)
    assert run("fake", "fake-small", "name=user") == 2
    assert capsys.readouterr().err.startswith("[rank 3] error: corpora/x")


def test_another_rank_says_which_it_is(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert run("fake", "fake-small", "name=user") == 2
    assert capsys.readouterr().err.startswith("[rank 3] error: corpora/x")


def test_many_processes_are_left_at_once(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    assert run("fake", "fake-small", "name=user") == 2
    assert codes == [2]  # an orderly exit would wait for the others


def test_our_mistake_is_a_traceback_and_1(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fake", "fake-small", "name=ours") == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("KeyError: 'our mistake'\n")


def test_sigterm_is_one_line_and_143(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run("fake", "fake-small", "name=terminated") == 143
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)
    error = capsys.readouterr().err
    assert error.startswith("ended by SIGTERM; the same command goes on")
    assert error.count("\n") == 1


WRITING = """
import sys, time
from pathlib import Path
from lert_ds import cli
from lert_ds.files import write_whole_folder
def write(_):
    with write_whole_folder(Path(sys.argv[1])) as folder:
        (folder / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)
cli._run = write
cli.main([])
"""


def test_sigterm_leaves_no_part_of_a_folder_and_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "edge"
    place.mkdir()
    (place / "old").touch()
    command = [sys.executable, "-c", WRITING, str(place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 143
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["edge", "old"]


def test_among_other_processes_sigterm_is_left_to_the_command(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    monkeypatch.setattr(
        sys.modules["fake_command"], "run", lambda _: seen.append(signal.getsignal(signal.SIGTERM))
    )
    before = signal.getsignal(signal.SIGTERM)
    run("fake", "fake-small")
    assert seen == [before]


def test_a_full_disk_is_one_line_and_2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fake", "fake-small", "name=full") == 2
    assert capsys.readouterr().err == (
        "error: runs/x/model.safetensors: No space left on device; free space, or name another "
        "place, and run it again\n"
    )


def test_secrets_are_shown_nowhere(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-token")
    assert run("fake", "fake-small", "name=planted-token", "--dry-run") == 0
    logging.getLogger("x").warning("asked with %s", "planted-token")
    assert run("fake", "planted-token.toml") == 2
    output = capsys.readouterr()
    assert '"name": "[HF_TOKEN]"' in output.out
    assert "asked with [HF_TOKEN]\nerror: [HF_TOKEN].toml: " in output.err
    assert "planted" not in output.out + output.err


def test_an_interruption_is_130(run: Run) -> None:
    assert run("fake", "fake-small", "name=interrupt") == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fake", "fake-small", "stepz=7"), "unknown key stepz (did you mean steps?)"),
        (("fake", "fake-smal"), "fake-smal: neither a .toml file nor a preset (did you mean fake-"),
        (("fake", "none.toml"), "none.toml: there is no such file"),
        (("fakee", "fake-small"), "fakee: no such command (did you mean fake?); there are prepare"),
    ],
)
def test_a_configuration_or_command_that_is_wrong_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "a COMMAND is needed"),
        (("fake",), "required: CONFIG"),
        (("fake", "fake-small", "--dry"), "unrecognized arguments: --dryy"),
        (("--verbose", "fake", "fake-small"), "unrecognized arguments: --verbose"),
    ],
)
def test_words_that_do_not_fit_show_the_usage(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    words = tuple(word.replace("--dry", "--dryy") for word in words)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: lert-ds")
    assert message in error


def test_help_of_a_command_lists_keys_and_presets(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fake", "--help") == 0
    text = capsys.readouterr().out
    assert "usage: lert-ds fake " in text
    assert "Nothing to nothing." in text
    assert "presets: fake-small" in text
    assert "steps=3    Steps of it." in text
    assert "name=none  Its name." in text


def test_help_lists_all_commands(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"  {name}" in text
        assert summary in text


@pytest.mark.parametrize("name", ["prepare", "pretrain", "predict", "report"])
def test_every_command_of_the_table_has_its_module(name: str) -> None:
    module = lert_ds.cli.COMMANDS[name][0]
    assert (Path(lert_ds.__file__).parents[1] / f"{module.replace('.', '/')}.py").is_file()


def test_every_command_prints_its_own_help(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        assert run(name, "--help") == 0, name
        assert f"usage: lert-ds {name} " in capsys.readouterr().out


def test_help_needs_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "from lert_ds import cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'datatrove', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "COMMAND" in result.stdout


@pytest.mark.parametrize(
    ("rank", "level", "expected"),
    [("0", None, "INFO"), ("1", None, "WARNING"), ("1", "debug", "DEBUG")],
)
def test_only_the_main_process_is_talkative(
    rank: str, level: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("LERT_DS_LOG", raising=False)
    if level is not None:
        monkeypatch.setenv("LERT_DS_LOG", level)
    cli.set_up_logging()
    assert logging.getLevelName(root.level) == expected
