"""What a whole training writes holds no planted secret, and is for whom the umask lets it be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTED = {
    "HF_TOKEN": "hf_PlAnTeDtOkEnOfTheHub0123456789abcd",
    "HUGGING_FACE_HUB_TOKEN": "planted-second-token-of-the-hub",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "DATABASE_PASSWORD": "planted-password-value",
    "CLUSTER_SECRET": "planted-secret-value",
}
IN_URL = "planted-user:planted-pass"
SIZES = [
    "architecture.layers=1", "architecture.hidden_size=32", "architecture.heads=2",
    "architecture.intermediate_size=64", "architecture.positions=32", "schedule.warmup_steps=1",
    "train.batch_size=4", "train.micro_batch_size=4", "train.steps=2", "train.report_every=1",
    "train.evaluate_every=2", "train.save_every=1", "train.data_workers=0",
    "deepspeed=ds_configs/zero0_fp32.json",
]  # fmt: skip


def run(*arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command with the secrets in its environment, or a program with them."""
    how = ["-c", program] if program else ["-m", "lert_ds"]
    command = [sys.executable, *how, *arguments]
    environment = {**os.environ, **PLANTED, "WANDB_SILENT": "true"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, umask=0o002
    )


def holding(content: bytes) -> list[str]:
    """Return which secrets bytes hold."""
    secrets = [*PLANTED.values(), *IN_URL.split(":")]
    return [secret for secret in secrets if secret.encode() in content]


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder with a report and trackers' files, and all that was printed."""
    pytest.importorskip("wandb")
    output = tmp_path_factory.mktemp("secrets") / "run"
    token, secret = PLANTED["HF_TOKEN"], PLANTED["CLUSTER_SECRET"]
    done = run(
        "pretrain", "pretrain-small", f"corpus={tiny_corpus}", f"output={output}", *SIZES,
        "tracking.tensorboard=true", "tracking.wandb=offline",
        f"tracking.name=run {token} {secret} https://{IN_URL}@host",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    with (output / "metrics.jsonl").open("a") as file:  # as an older version may have left it
        file.write(json.dumps({"kind": "event", "step": 2, "message": token}) + "\n")
    report = run("report", str(output))
    (output / "metrics.jsonl").write_text("")
    return output, done.stdout + done.stderr + report.stdout + report.stderr


@pytest.mark.slow
def test_a_run_keeps_secrets_to_itself(trained: tuple[Path, str]) -> None:
    output, printed = trained
    assert not holding(printed.encode())
    files = [path for path in output.rglob("*") if path.is_file()]
    kinds = {path.name for path in files}
    assert {"config.json", "run.json", "summary.json", "report.html"} <= kinds
    tracked = [path.read_bytes() for path in files if path.suffix == ".wandb"]
    assert any(b"mlm/loss" in content for content in tracked)
    assert "[HF_TOKEN]" in (output / "config.json").read_text("utf-8")
    assert {str(path): found for path in files if (found := holding(path.read_bytes()))} == {}


@pytest.mark.slow
def test_a_group_can_share_what_the_umask_lets_it(trained: tuple[Path, str]) -> None:
    output, _ = trained
    ours = [p for p in (output, *output.rglob("*")) if "wandb" not in p.relative_to(output).parts]
    assert any(path.suffix == ".safetensors" for path in ours)
    modes = {str(p): oct(p.stat().st_mode & 0o777) for p in ours}
    wanted = {str(p): oct(0o775 if p.is_dir() else 0o664) for p in ours}
    assert modes == wanted


def test_an_error_shows_no_secret() -> None:
    source = f"https://{IN_URL}@host/{PLANTED['DATABASE_PASSWORD']}"
    done = run("predict", source, "今天[MASK]好")
    assert done.returncode == 2
    assert "error: https://[…]@host/[DATABASE_PASSWORD]" in done.stderr
    program = f"from lert_ds import cli; cli._run = lambda _: {{}}[{source!r}]; cli.main([])"
    environment = {**os.environ, **PLANTED}
    ours = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ours.returncode == 1
    assert "KeyError: 'https://[…]@host/[DATABASE_PASSWORD]'" in ours.stderr
    assert not holding((done.stderr + ours.stderr).encode())
