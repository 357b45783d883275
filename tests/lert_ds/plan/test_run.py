"""The command: what it prints, in words and JSON, and what it refuses."""

import json
from typing import Any

import pytest

from lert_ds import cli
from lert_ds.plan import calibrate
from lert_ds.plan.hardware import known


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code: Any = 0
    try:
        cli.main(["plan", *words])
    except SystemExit as end:
        code = end.code or 0
    said = capsys.readouterr()
    return int(code), said.out, said.err


def tree(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def test_lert_large_on_64(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain-large", "--gpus", "64", "--gpu", "h100", "--interconnect", "400gbit")
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert "64 h100 processes" in out
    assert "2,000,000 steps" in out
    numbers = tree(capsys, *words)
    assert (numbers["gpus"], numbers["batch_size"], numbers["zero_stage"]) == (64, 1024, 1)
    assert numbers["fits"]
    assert 0.1 < numbers["mfu"] < 0.8


def test_keys_of_the_training_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = tree(
        capsys, "pretrain-base", "train.micro_batch_size=16", "train.steps=1000",
        "deepspeed=ds_configs/zero3_fp32.json", "--gpu", "rtx4090", "--gpus", "4",
        "--gpus-per-node", "4",
    )  # fmt: skip
    assert numbers["micro_batch_size"] == 16
    assert numbers["steps"] == 1000
    assert (numbers["precision"], numbers["zero_stage"]) == ("fp32", 3)


def test_the_memory_is_that_of_the_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = tree(capsys, "pretrain-large", "kernels.loss=plain", "--gpus", "8")
    cli.main(["pretrain", "pretrain-large", "--dry-run", "--processes", "8"])
    out = capsys.readouterr().out
    told = numbers["memory_bytes"]
    states = sum(told[name] for name in ("weights", "gradients", "optimizer", "activations"))
    assert f"{states / 2**30:.2f} GiB = weights" in out


def test_fused_kernels_are_faster(capsys: pytest.CaptureFixture[str]) -> None:
    plain = tree(capsys, "pretrain-large", "kernels.compile=off")
    fused = tree(capsys, "pretrain-large")
    eight = tree(capsys, "pretrain-large", "kernels.fp8=torchao")
    assert eight["days"] < fused["days"] < plain["days"]


def test_phases_of_a_run_are_each_reckoned(capsys: pytest.CaptureFixture[str]) -> None:
    whole = tree(capsys, "pretrain-large")
    phased = tree(
        capsys, "pretrain-large", "train.lengths=[[0, 128], [1_800_000, 512]]",
        "train.batch_warmup=[[0, 256], [10_000, 1024]]",
    )  # fmt: skip
    assert [phase["steps"] for phase in phased["phases"]] == [10_000, 1_790_000, 200_000]
    assert [phase["batch_size"] for phase in phased["phases"]] == [1024, 4096, 1024]
    assert [phase["length"] for phase in phased["phases"]] == [128, 128, 512]
    assert phased["days"] < whole["days"]
    assert phased["step_seconds"] == whole["step_seconds"]


def test_a_table_of_those_that_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain-large", "--gpus", "8", "--table")
    assert [row["gpus"] for row in tree(capsys, *words)["table"]] == [1, 8]
    joined = tree(capsys, *words, "--interconnect", "8x400gbit")["table"]
    assert [row["gpus"] for row in joined] == [1, 8, 16, 64, 256, 1024]
    hours = [row["gpu_hours"] for row in joined]
    assert hours == sorted(hours)
    code, out, _ = call(capsys, *words, "--price", "2")
    assert code == 0
    assert "| GPUs" in out
    assert "cost" in out


def test_a_custom_device(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = tree(
        capsys, "pretrain-small", "--gpu", "custom", "--peak-tflops", "200", "--memory-gib", "64",
        "--memory-bandwidth-gbytes", "1600",
    )  # fmt: skip
    assert numbers["gpu"] == "custom"


def test_the_processor_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(run: Any, work: Any, processes: int) -> Any:
        asked.append(processes)
        return known("a100-40")

    monkeypatch.setattr(calibrate, "measured_cpu", measured)
    monkeypatch.setattr("lert_ds.machine.usable_cores", lambda: 2)
    tree(capsys, "pretrain-small", "deepspeed=ds_configs/cpu_fp32.json", "--gpu", "cpu",
         "--gpus", "4", "--interconnect", "10gbit")  # fmt: skip
    assert asked == [2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpu", "tpu"], "--gpu tpu: not known; choose v100, a100-40"),
        (["--gpu", "v100"], "v100: it has no bf16; set deepspeed=ds_configs/zero1_fp16.json"),
        (["--gpu", "custom"], "--gpu custom needs --peak-tflops"),
        (["--gpus", "0"], "--gpus 0: must be 1 or more"),
        (["--gpus", "7"], "train.batch_size = 1024 is no multiple of 7"),
        (["--gpus", "16"], "--interconnect 400gbit"),
        (["--gpus", "16", "--interconnect", "slow"], "--interconnect slow: write"),
        (["--gpus", "32", "--gpus-per-node", "5"], "--gpus 32: no multiple of the 5"),
        (["--price", "-1"], "--price -1: must be 0 or more"),
        (["train.stepz=1"], "stepz"),
        (["--gpu", "a100-80", "kernels.fp8=torchao"], "does not multiply in 8 bits"),
        (["--gpu", "cpu", "deepspeed=ds_configs/zero1_fp16.json"], "--gpu cpu: it has no fp16"),
        (["--gpu", "cpu", "--gpus", "512", "--gpus-per-node", "512"], "cores to measure on"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    code, out, err = call(capsys, "pretrain-large", *words)
    assert code == 2
    assert not out
    assert err.startswith("error: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_an_unknown_preset_lists_those_of_pretrain(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "pretrain-huge")
    assert code == 2
    assert "pretrain-large" in err


def test_help_lists_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for word in ("rtx4090", "--interconnect", "--peak-tflops", "docs/plan.md", "8x400gbit"):
        assert word in out
