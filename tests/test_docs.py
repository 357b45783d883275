"""What the pages under docs/ tell people to type is what the programs take."""

import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from distill.run import DistillRun
from lert_ds import cli, config
from lert_ds.finetune import run as finetune
from lert_ds.finetune.tasks import TASKS
from lert_ds.pretrain import PretrainRun
from prune.recover import RecoverRun

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PRESETS = [ROOT / package / "configs" for package in ("lert_ds", "distill", "prune")]
TRAININGS = {"pretrain": PretrainRun, "distill": DistillRun, "recover": RecoverRun}
LAUNCHERS = ("deepspeed", "torchrun", "srun", "sbatch", "salloc", "lert-ds")
# Options of Slurm's programs; a test submits the batch file to a real one (test_hosts_launch.py).
SLURM_OPTIONS = {
    "--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--partition", "--job-name",
    "--signal", "--requeue", "--open-mode", "--output",
}  # fmt: skip


def commands() -> list[str]:
    """Every indented line that starts a launcher or `lert-ds`."""
    found = []
    for page in PAGES:
        blocks = re.sub(r"\\\n\s+", "", page.read_text("utf-8"))
        found += re.findall(rf"^    ((?:{'|'.join(LAUNCHERS)}) .*)$", blocks, re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in found]


def parsed_by_deepspeed(words: Sequence[str]) -> list[str]:
    from deepspeed.launcher.runner import parse_args

    parsed = parse_args(list(words))
    assert parsed.module
    assert parsed.user_script == "lert_ds"
    return list(parsed.user_args)


def parsed_by_torchrun(words: Sequence[str]) -> list[str]:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(list(words))
    assert parsed.module
    assert parsed.training_script == "lert_ds"
    return list(parsed.training_script_args)


def parsed_by_slurm(words: Sequence[str]) -> list[str]:
    rest = list(words)
    while rest and rest[0].startswith("-"):
        assert rest.pop(0).partition("=")[0] in SLURM_OPTIONS
    if rest and rest[0].endswith(".sbatch"):
        assert (ROOT / rest[0]).is_file()
        return ["pretrain", *rest[1:]]
    return rest[1:]


PARSERS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "deepspeed": parsed_by_deepspeed,
    "torchrun": parsed_by_torchrun,
    "srun": parsed_by_slurm,
    "sbatch": parsed_by_slurm,
    "salloc": parsed_by_slurm,
    "lert-ds": list,
}


def check(words: Sequence[str]) -> None:
    """Check a command: its launcher's options, the command of ours, its preset and its keys."""
    rest = PARSERS[words[0]](words[1:])
    if not rest:  # salloc
        return
    command, *arguments = rest
    assert command in cli.COMMANDS
    if "--" in arguments:  # supervise
        check(arguments[arguments.index("--") + 1 :])
    if command in TRAININGS:
        names = [word for word in arguments if "=" not in word and not word.startswith("-")]
        overrides = [word for word in arguments if "=" in word]
        path = config.find(names[0], PRESETS)
        config.load(TRAININGS[command], path, overrides)
    if command == "finetune":
        check_finetune(arguments)


def check_finetune(arguments: Sequence[str]) -> None:
    """Check the arguments of `finetune`: a task or all, a model, keys, those of one task too."""
    name, model, *overrides = (word for word in arguments if not word.startswith("-"))
    for task in TASKS if name == finetune.ALL else [name]:
        assert finetune._read(task, model, overrides).model == model
    for override in overrides:
        head, _, rest = override.partition(".")
        assert head not in TASKS or finetune._read(head, model, [rest])


def test_an_argument_of_finetune_that_is_wrong_is_found() -> None:
    for wrong in ("ocnly m", "ocnli m task.dat=x", "all m ocnli.train.learning_rat=1", "ocnli"):
        with pytest.raises(ValueError):
            check_finetune(wrong.split())


def test_the_pages_have_commands() -> None:
    found = {line.split()[0] for line in commands()}
    assert found == set(LAUNCHERS)


@pytest.mark.parametrize("line", commands())
def test_a_command_is_one_that_the_programs_take(line: str) -> None:
    check(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]
    named = re.findall(r"`((?:lert_ds|distill|prune|ds_configs|tests)/[\w/.]*)`", text)
    named += re.findall(r"^    python ([\w/]+\.py)", text, re.MULTILINE)
    assert not [name for name in named if not (ROOT / name).exists()]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:`|    )make ([a-z-]+)", text)) <= set(targets)


def test_the_batch_file_asks_for_what_its_page_says() -> None:
    path = ROOT / "docs" / "hosts" / "pretrain.sbatch"
    lines = re.findall(r"^#SBATCH (.*)$", path.read_text("utf-8"), re.MULTILINE)
    assert {line.partition("=")[0] for line in lines} <= SLURM_OPTIONS - {"--partition"}
    assert {"--signal=USR1@180", "--requeue"} <= set(lines)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_the_batch_file_needs_an_output() -> None:
    path = ROOT / "docs" / "hosts" / "pretrain.sbatch"
    done = subprocess.run(
        ["bash", str(path), "pretrain-base"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("say output=FOLDER")


STAND_INS = """
lert-ds() {{ :; }}
srun() {{ echo "srun $*"; {does}; }}
scontrol() {{ echo "scontrol $*"; }}
"""


@pytest.mark.parametrize(
    ("does", "code", "says"),
    [
        ("mkdir -p run/model; touch run/summary.json", 0, "finished: run/model"),
        ("echo step-9 > run/checkpoints/latest", 0, "scontrol requeue 7"),
        (":", 1, "stopped without a new checkpoint"),
        ("return 3", 3, "srun --kill-on-bad-exit=1 lert-ds pretrain a.toml output=run"),
    ],
)
def test_the_batch_file_queues_itself_again_while_it_gets_on(
    tmp_path: Path, does: str, code: int, says: str
) -> None:
    """With functions for Slurm's programs; test_hosts_launch.py does it with a real Slurm."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-5", "utf-8")
    script = (ROOT / "docs" / "hosts" / "pretrain.sbatch").read_text("utf-8")
    done = subprocess.run(
        ["bash", "-c", STAND_INS.format(does=does) + script, "batch", "a.toml", "output=run"],
        cwd=tmp_path, env={"SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert says in done.stdout
    assert ("scontrol" in done.stdout) == ("requeue" in says)


def test_the_tools_of_the_tests_are_those_that_make_installs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    listed = re.search(r"^HOST_TOOLS := (.*)$", makefile, re.MULTILINE)
    assert listed is not None
    used: set[str] = set()
    for name in ("cluster", "slurm_cluster"):
        text = (ROOT / "tests" / "launch" / f"{name}.py").read_text("utf-8")
        table = text[text.index("PACKAGES = {") : text.index("}")]
        used |= set(re.findall(r'": "([\w-]+)"', table))
    assert set(listed[1].split()) == used
