import getpass
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lert_ds.doctor.hostfile import (
    Target,
    exported_environment,
    read_hostfile,
    remote_command,
    ssh_command,
)
from lert_ds.errors import ConfigError


def test_a_hostfile_is_read_as_deepspeed_does(tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("# two\nnode1 slots=8\n\n  node2   slots=4 # half\n", "utf-8")
    assert read_hostfile(path) == [Target("node1", 8), Target("node2", 4)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("node1\n", "line 1.*slots=N"),
        ("a slots=1\nb slots=many\n", "line 2"),
        ("a slots=1\na slots=2\n", "line 2: a is there twice"),
        ("a slots=0\n", "slots=0"),
        ("-oProxyCommand=x slots=1\n", "line 1"),  # ssh would take it for an option
        ("# none\n", "no host"),
    ],
)
def test_a_wrong_hostfile_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "hostfile").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=told):
        read_hostfile(tmp_path / "hostfile")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def test_the_environment_that_the_launcher_hands_over(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    (home / ".deepspeed_env").write_text("PATH=/opt/bin\nA=1\n", "utf-8")
    (folder / ".deepspeed_env").write_text("A=b=c\n\n# note\n", "utf-8")
    given = {"NCCL_DEBUG": "INFO", "PYTHONHASHSEED": "1", "SECRET": "x", "PYTHONPATH": "/lib"}
    exports, problems = exported_environment(given, home, folder, "cuda")
    assert exports == {
        "PYTHONPATH": f"{folder}:/lib", "NCCL_DEBUG": "INFO", "PYTHONHASHSEED": "1",
        "PATH": "/opt/bin", "A": "b=c",
    }  # fmt: skip
    # The launcher stops at a line without =, a blank one too.
    assert problems == [f"{folder / '.deepspeed_env'}, line {number}" for number in (2, 3)]
    assert "NCCL_DEBUG" not in exported_environment(given, home, folder, "cpu")[0]


def test_it_is_the_environment_of_deepspeed_itself(tmp_path: Path) -> None:
    """By its own rule: what its source says of names and of the file."""
    spec = __import__("importlib.util").util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "launcher/runner.py").read_text("utf-8")
    assert "EXPORT_ENVS = ['MLFLOW', 'PYTHON', 'MV2', 'UCX']" in source
    assert "DEEPSPEED_ENVIRONMENT_PATHS = [os.path.expanduser(\"~\"), '.']" in source
    assert "key, val = var.split('=', maxsplit=1)" in source


def test_a_shell_there_runs_this_interpreter_in_the_folder(tmp_path: Path) -> None:
    exports = {"A": "1 2", "B": "x"}
    script = "import os, sys; print(os.environ['A'], os.environ['B'], os.getcwd(), sys.argv[1])"
    line = remote_command(exports, tmp_path, ["-c", script, "a b"])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == f"1 2 x {tmp_path} a b\n"
    assert shlex.quote(sys.executable) in line


def test_the_ssh_is_that_of_pdsh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PDSH_SSH_ARGS", raising=False)
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p 2222")
    words = ssh_command("node1", "true")
    assert words[:3] == ["ssh", "-p", "2222"]
    assert words[-6:] == ["-2", "-a", "-x", f"-l{getpass.getuser()}", "node1", "true"]
    assert "-oBatchMode=yes" in words  # it may ask for no password
    monkeypatch.setenv("PDSH_SSH_ARGS", "-q")
    assert ssh_command("node1", "true")[-3:] == ["-q", "node1", "true"]
