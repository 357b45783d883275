"""What DeepSpeed's launcher does with a hostfile: which hosts, which ssh, what environment.

The rules are those of deepspeed/launcher/runner.py and multinode_runner.py (0.19.8) and of pdsh's
ssh module, so that what fails there fails here.
"""

import getpass
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lert_ds.errors import ConfigError

CONNECT_SECONDS = 10
"""As pdsh waits for a connection."""

EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX")
"""The launcher hands over every variable whose name opens with one of these …"""
EXPORTED_WITH = {"cuda": ("NCCL",), "cpu": ()}
"""… or, by accelerator, with one of these …"""
ENVIRONMENT_FILE = ".deepspeed_env"
"""… and what stands in this file, in the home and in the working folder."""


@dataclass(frozen=True)
class Target:
    """A line of the hostfile."""

    name: str
    slots: int
    """Processes on it."""


def read_hostfile(path: Path) -> list[Target]:
    """Return the hosts of a hostfile.

    Raises:
        ConfigError: there is none, a line is no `host slots=N`, or a host is there twice.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--hostfile {path}: cannot be read ({reason})") from error
    targets: list[Target] = []
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        match = re.match(r"(\S+)\s+slots=(\d+)", text)
        if match is None or match[1].startswith("-"):
            raise ConfigError(f"{path}, line {number}: {text!r}: write it as `host slots=N`")
        if match[1] in {target.name for target in targets}:
            raise ConfigError(f"{path}, line {number}: {match[1]} is there twice; keep one line")
        if int(match[2]) < 1:
            raise ConfigError(f"{path}, line {number}: slots=0: give {match[1]} one or more")
        targets.append(Target(match[1], int(match[2])))
    if not targets:
        raise ConfigError(f"{path}: no host; write a line `host slots=N` each")
    return targets


def exported_environment(
    environment: Mapping[str, str], home: Path, folder: Path, accelerator: str
) -> tuple[dict[str, str], list[str]]:
    """Return what the launcher exports on every host, and what is wrong with `.deepspeed_env`.

    Args:
        environment: Of this process.
        home: The home, whose `.deepspeed_env` is read first.
        folder: The working folder; its `.deepspeed_env` wins.
        accelerator: `cuda` or `cpu`.
    """
    path = environment.get("PYTHONPATH")
    handed = {"PYTHONPATH": f"{folder}:{path}" if path is not None else str(folder)}
    names = EXPORTED + EXPORTED_WITH.get(accelerator, ())
    for name, value in environment.items():
        if name.startswith(names) and name != "PYTHONPATH":
            handed[name] = value
    problems = []
    name_of_file = environment.get("DS_ENV_FILE", ENVIRONMENT_FILE)
    for place in dict.fromkeys((home, folder)):
        file = place / name_of_file
        if not file.is_file():
            continue
        for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
            name, found, value = line.partition("=")
            if not found:
                problems.append(f"{file}, line {number}")  # not its text: it may be a secret
            else:
                handed[name.strip()] = value.strip()
    return handed, problems


def remote_command(exports: Mapping[str, str], folder: Path, arguments: Sequence[str]) -> str:
    """Return the line that a host's shell is given, as the launcher would: exports, cd, python."""
    words = [f"export {name}={_quoted(value)};" for name, value in exports.items()]
    words.append(f"cd {shlex.quote(str(folder))};")
    # exec: no shell stays between, so that the end of the connection ends the process.
    words += ["exec", *map(shlex.quote, (sys.executable, "-u", *arguments))]
    return " ".join(words)


def ssh_command(host: str, command: str) -> list[str]:
    """Return the ssh that pdsh would start on `host`, which may ask for no password."""
    user = getpass.getuser()
    given = os.environ.get("PDSH_SSH_ARGS", "-2 -a -x -l%u %h")
    words = [word.replace("%u", user).replace("%h", host) for word in shlex.split(given)]
    if not any("%h" in word for word in shlex.split(given)):
        words.append(host)
    more = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    ours = [f"-oConnectTimeout={CONNECT_SECONDS}", "-oBatchMode=yes", "-T"]
    return ["ssh", *more, *ours, *words, command]


def _quoted(value: str) -> str:
    """Quote as DeepSpeed does, which is not always enough: what breaks there breaks here."""
    return f'"{value}"' if re.search(r"[^\w@%+=:,./-]", value) else value
