"""The whole command, as a user calls it, on a healthy machine and on one with planted faults."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Doctor = Callable[..., Any]

SSH = """#!/bin/sh
# The last argument is the command, the one before it the host.
for word; do before=$host; host=$line; line=$word; done
case $host in
    refuses) echo "user@refuses: Permission denied (publickey)." >&2; exit 255;;
    hangs) exec sleep 600;;
    empty) line=$(printf %s "$line" | sed "s#exec [^ ]*#exec /opt/none/python#");;
    older) plant="PYTHONPATH=$PLANTED/older:\\$PYTHONPATH";;
    ahead) plant="PYTHONPATH=$PLANTED/ahead:\\$PYTHONPATH";;
    bare) plant="PATH=$PLANTED/none TORCH_EXTENSIONS_DIR=$PLANTED/none";;
esac
[ -z "$plant" ] || line=$(printf %s "$line" | sed "s#exec #export $plant; exec #")
echo "a greeting of the shell"
exec sh -c "$line"
"""
HOSTS = ("healthy", "older", "ahead", "bare", "empty", "refuses", "hangs")


@pytest.fixture(scope="module")
def told(doctor: Doctor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the command says of seven hosts, six of which have a fault, in one call."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "ssh").write_text(SSH, "utf-8")
    (folder / "ssh").chmod(0o755)
    package = folder / "older" / "numpy-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n", "utf-8")
    (folder / "ahead").mkdir()
    (folder / "ahead" / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() + 90\n", "utf-8"
    )
    (folder / ".deepspeed_env").write_text("WANDB_API_KEY=verysecret\n", "utf-8")
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{host} slots=1\n" for host in HOSTS), "utf-8")
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "PLANTED": str(folder), "HOME": str(folder),
    }  # fmt: skip
    return doctor(["--hostfile", str(hostfile), "--timeout", "25"], environment)


def test_planted_a_healthy_host_among_others_has_nothing_to_be_mended(told: Any) -> None:
    assert told.code == 1
    assert told.status("versions", "healthy") == {"OK"}
    assert told.status("clock", "healthy") == {"OK"}
    assert not told.of("host", "healthy")


def test_planted_another_version(told: Any) -> None:
    (row,) = told.of("versions", "older")
    assert row["status"] == "FAIL"
    assert row["found"] == f"numpy 1.0 (elsewhere {np.__version__})"


def test_planted_a_clock_that_is_ahead(told: Any) -> None:
    (row,) = told.of("clock", "ahead")
    assert row["status"] == "FAIL"
    seconds = float(row["found"].split()[0])
    assert 88 < seconds < 92
    assert "ahead" in row["found"]


def test_planted_a_path_without_compilers(told: Any) -> None:
    (row,) = told.of("ops", "bare")
    assert row["status"] == "FAIL"
    assert "ninja" in row["found"]
    assert ".deepspeed_env" in row["remedy"]


def test_planted_no_environment_over_there(told: Any) -> None:
    (row,) = told.of("host", "empty")
    assert row["status"] == "FAIL"
    assert "/opt/none/python" in row["found"]
    assert row["remedy"] == "install the same environment at the same path there"


def test_planted_an_ssh_that_refuses(told: Any) -> None:
    (row,) = told.of("host", "refuses")
    assert row["status"] == "FAIL"
    assert "Permission denied" in row["found"]
    assert "ssh-copy-id" in row["remedy"]


def test_planted_a_host_that_hangs(told: Any) -> None:
    (row,) = told.of("host", "hangs")
    assert (row["status"], row["found"]) == ("FAIL", "did not start within 25 s")


def test_no_secret_is_told(told: Any) -> None:
    assert told.rows
    assert "verysecret" not in told.text + told.errors


@pytest.fixture(scope="module")
def call(doctor: Doctor, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Doctor:
    """Overrides, options → what the command says of a small run on this host."""
    output = tmp_path_factory.mktemp("run") / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = {"corpus": str(tiny_corpus), "output": str(output)}

    def run(overrides: dict[str, str] | None = None, *options: str, **named: Any) -> Any:
        words = [f"{key}={value}" for key, value in (given | (overrides or {})).items()]
        options = ("--master_port", port, *options)
        return doctor(["pretrain-quickstart", *words, *options], **named)

    return run


def test_a_healthy_machine_passes_with_an_all_reduce_and_its_bandwidth(
    call: Doctor, tmp_path: Path
) -> None:
    # The compilers of this machine are not what is tested here.
    for op in ("deepspeed_shm_comm", "fused_adam"):
        (tmp_path / op).mkdir()
        (tmp_path / op / f"{op}.so").write_bytes(b"")
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "GLOO_SOCKET_IFNAME": "lo"}
    told = call({}, "--processes", "2", environment=environment)
    assert not [row for row in told.rows if row["status"] == "FAIL"], told.text + told.errors
    assert told.code == 0
    (row,) = told.of("all-reduce")
    assert "2 processes, gloo: 16 MiB" in row["found"]
    assert "GB/s" in row["found"]
    assert told.status("corpus") == told.status("memory") == told.status("disk") == {"OK"}


def test_planted_faults_of_one_configuration(
    call: Doctor, copy_corpus: Callable[[Path], Path], tmp_path: Path
) -> None:
    corpus = copy_corpus(tmp_path / "corpus")
    shard = corpus / "shards" / "00000-000.dep.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = call(
            {
                "corpus": str(corpus),
                "output": "/proc/run",
                "train.batch_size": "8000000",
                "train.micro_batch_size": "8000000",
            },
            *("--master_port", str(port)),
            environment={"GLOO_SOCKET_IFNAME": "nosuch0", "TMPDIR": "/proc"},
        )
    assert told.code == 1
    assert "00000-000.dep.npy" in told.of("corpus")[0]["found"]
    assert "cannot be written" in told.of("output")[0]["found"]
    assert told.status("memory") == {"FAIL"}
    assert f"{port}: Address already in use" in told.of("port")[0]["found"]
    assert "nosuch0 is not there" in told.of("interface")[0]["found"]
    assert "TMPDIR=/proc cannot be written" in told.of("temporary files")[0]["found"]


def test_planted_a_misspelt_key_of_deepspeed_and_a_disk_that_is_too_small(
    call: Doctor, tmp_path: Path
) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_sise": 1}}', "utf-8")
    told = call({"deepspeed": str(path), "train.keep_checkpoints": "1000000000"})
    assert told.code == 1
    (row,) = told.of("configuration")
    assert row["status"] == "FAIL"
    assert "reduce_bucket_sise" in row["found"]
    assert told.status("disk") == {"FAIL"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain-nothing"], "neither a .toml file nor a preset"),
        (["--hostfile", "none"], "cannot be read"),
        (["pretrain-base", "overwrite"], "key.path=value"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(
    doctor: Doctor, words: Sequence[str], message: str
) -> None:
    told = doctor(words)
    assert told.code == 2
    (line,) = told.errors.splitlines()
    assert message in line


@pytest.mark.launch
def test_two_processes_of_the_launcher_give_one_table(
    launch: Callable[..., subprocess.CompletedProcess[str]], tiny_corpus: Path, tmp_path: Path
) -> None:
    words = ["doctor", "pretrain-quickstart", f"corpus={tiny_corpus}", f"output={tmp_path / 'run'}"]
    done = launch(2, ["--module", "lert_ds", *words])
    told = done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "all-reduce" in line]
    assert len(lines) == 1, told
    assert "2 processes, gloo" in lines[0]
    assert "GB/s" in lines[0]
    assert told.count("stop a run") == 1
    (row,) = [line for line in done.stdout.splitlines() if " port " in line]
    assert "the processes met" in row


def test_facts_are_printed_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lert_ds", "doctor", "--facts"], capture_output=True, text=True,
        check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert json.loads(done.stdout)["versions"]["numpy"] == np.__version__
