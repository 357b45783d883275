from pathlib import Path

import pytest

from lert_ds.doctor.plan import command_of, plan, read_dry_run
from lert_ds.errors import ConfigError

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "overrides", "command"),
    [
        ("pretrain-base", [], "pretrain"),
        ("distill-large-to-small", [], "distill"),
        ("recover-edge", [], "recover"),
        ("mine.toml", [], "pretrain"),
        ("mine.toml", ["teacher=a"], "distill"),
        ("mine.toml", ["model=a"], "recover"),
        ("mine.toml", ["distillation.pos=0"], "distill"),
    ],
)
def test_a_configuration_is_for_a_command(
    name: str, overrides: list[str], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("[train]\nsteps = 1\n", "utf-8")
    assert command_of(name, overrides)[0] == command


def test_no_such_configuration_and_no_override_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean pretrain-base"):
        command_of("pretrain-bose", [])
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        command_of("pretrain-base", ["overwrite"])


def test_the_numbers_are_those_of_the_dry_run() -> None:
    text = (
        '{\n  "output": "{"\n}\nparameters        3,361,087\nbatch             16 instances\n'
        "memory a process  1.50 GiB = weights 0.50 + gradients 0.50 + optimizer 0.25 + activations "
        "about 0.25; on the host 0.75\nteacher           a/b: 5 parameters, 2 layers of 8, weight "
        "1; besides the memory above 0.25 GiB in bf16, twice that in fp32"
    )
    config, numbers = read_dry_run(text)
    assert config == {"output": "{"}
    assert numbers == {
        "parameters": 3_361_087, "device_bytes": 1.75 * GIB, "host_bytes": 0.75 * GIB,
    }  # fmt: skip


def test_what_the_command_refuses_is_refused_in_its_words(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setenv("RANK", "1")  # of these tests: the message would open with it
    json = tmp_path / "zero.json"
    json.write_text('{"zero_optimisation": {"stage": 2}}', "utf-8")
    command, path = command_of("pretrain-quickstart", [])
    overrides = [f"corpus={tiny_corpus}", f"output={tmp_path / 'run'}"]
    for more, processes, message in (
        ([f"deepspeed={json}"], 2, "unknown key zero_optimisation; did you mean zero_optimization"),
        ([], 3, r"^train\.batch_size = 16 is no multiple"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(command, path, [*overrides, *more], processes, 120)


def test_a_run_is_planned_as_its_command_does(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    command, path = command_of("pretrain-quickstart", [])
    overrides = [f"corpus={tiny_corpus}", f"output={tmp_path / 'run'}"]
    told = plan(command, path, overrides, 2, 120)
    train = told.config["train"]
    assert told.parameters > 100_000
    assert told.device_bytes > 0
    assert (
        told.deepspeed["gradient_accumulation_steps"] * train["micro_batch_size"] * 2
        == (train["batch_size"])
    )
    assert told.corpora == [[str(tiny_corpus)], [str(tiny_corpus / "held_out")]]
    assert not told.offload
