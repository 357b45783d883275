"""DeepSpeed's JSON: what ships is accepted by DeepSpeed, what DeepSpeed passes over is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lert_ds.errors import ConfigError
from lert_ds.train import deepspeed_config

FOLDER = Path(__file__).parents[3] / "ds_configs"
SHIPPED = sorted(FOLDER.glob("*.json"))
OWNED: dict[str, float | int] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
}


def write(folder: Path, tree: Any) -> Path:
    path = folder / "own.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), "utf-8")
    return path


def refusal(folder: Path, tree: Any) -> str:
    """Return the message that refuses a JSON, without the file's name, which it must open with."""
    path = write(folder, tree)
    with pytest.raises(ConfigError) as caught:
        deepspeed_config.resolve(path, OWNED)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_all_that_was_asked_for_ships() -> None:
    assert len(SHIPPED) == 15
    names = {path.stem for path in SHIPPED}
    assert {f"zero{stage}_{kind}" for stage in range(4) for kind in ("bf16", "fp32")} <= names
    assert {"zero2_bf16_offload", "zero3_bf16_offload", "zero1_fp16", "cpu_bf16"} <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_deepspeed_accepts_what_ships_and_reads_it_as_we_do(path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    tree = deepspeed_config.resolve(path, OWNED)
    theirs = DeepSpeedConfig(tree)
    assert theirs.train_batch_size == 32
    assert theirs.train_micro_batch_size_per_gpu == 8
    assert theirs.gradient_accumulation_steps == 4
    assert theirs.gradient_clipping == 1.0
    assert theirs.zero_optimization_stage == deepspeed_config.stage(tree)
    precision = {
        "bf16": theirs.bfloat16_config.enabled,
        "fp16": theirs.float16_config.enabled,
        "autocast": theirs.torch_autocast_enabled,
    }
    enabled = [name for name, on in precision.items() if on] or ["fp32"]
    assert enabled == [deepspeed_config.precision(tree)]
    zero = theirs.zero_config
    assert (zero.offload_optimizer is not None) == deepspeed_config.offloads_optimizer(tree)
    assert (zero.offload_param is not None) == deepspeed_config.offloads_parameters(tree)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_name_of_a_file_says_what_is_in_it(path: Path) -> None:
    tree = deepspeed_config.resolve(path, OWNED)
    first, kind, *rest = path.stem.split("_")
    assert first in ("cpu", f"zero{deepspeed_config.stage(tree)}")
    assert kind == deepspeed_config.precision(tree)
    assert (rest == ["offload"]) == deepspeed_config.offloads_optimizer(tree)


class Recorder(dict[str, Any]):
    """A configuration that remembers which keys were asked for, at any depth."""

    asked: set[str]

    def __init__(self, tree: dict[str, Any], asked: set[str], prefix: str = "") -> None:
        super().__init__(
            (key, Recorder(value, asked, f"{prefix}{key}.") if isinstance(value, dict) else value)
            for key, value in tree.items()
        )
        self.asked, self.prefix = asked, prefix

    def __deepcopy__(self, memo: object) -> "Recorder":
        return self

    def _note(self, key: object) -> None:
        self.asked.add(f"{self.prefix}{key}")

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # `key in tree.keys()` is a question too


def keys_that_deepspeed_reads(tree: dict[str, Any]) -> set[str]:
    from deepspeed.runtime.config import DeepSpeedConfig

    asked: set[str] = set()
    DeepSpeedConfig(Recorder({"train_batch_size": 4, **tree}, asked))
    return asked


def test_deepspeed_knows_every_key_that_is_accepted() -> None:
    read = keys_that_deepspeed_reads({})
    assert not deepspeed_config.ACCEPTED - read
    assert "zero_optimisation" not in read  # it passes over what it does not know


def test_deepspeed_knows_every_key_of_autocast() -> None:
    read = keys_that_deepspeed_reads({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}})
    assert not {f"torch_autocast.{key}" for key in deepspeed_config.AUTOCAST} - read


def test_a_misspelt_key_that_deepspeed_would_ignore_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"zero_optimisation": {"stage": 2}})
    assert message == "unknown key zero_optimisation; did you mean zero_optimization?"


def test_a_key_like_no_other_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"xyz": 1})
    assert message.startswith("unknown key xyz; known keys: activation_checkpointing, ")


def test_a_misspelt_key_of_autocast_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"torch_autocast": {"enable": True}})
    assert message.startswith("unknown key torch_autocast.enable; known keys: dtype, enabled")


@pytest.mark.parametrize("key", sorted(deepspeed_config.ELSEWHERE))
def test_a_key_with_another_home_is_refused_with_the_reason(key: str, tmp_path: Path) -> None:
    reason = deepspeed_config.ELSEWHERE[key]
    assert refusal(tmp_path, {key: {}}) == f"remove the key {key}: {reason}"


@pytest.mark.parametrize(
    "key", ["elasticity", "amp", "compression_training", "sparse_attention",
            "progressive_layer_drop", "curriculum_learning"],
)  # fmt: skip
def test_the_retired_keys_are_among_them_and_retired_indeed(key: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    assert key in deepspeed_config.ELSEWHERE
    with pytest.raises(DeepSpeedConfigError):
        DeepSpeedConfig({"train_batch_size": 4, key: {"enabled": True}})


def test_the_runs_numbers_fill_what_is_auto_or_absent(tmp_path: Path) -> None:
    path = write(tmp_path, {"train_batch_size": "auto", "gradient_clipping": 1})
    tree = deepspeed_config.resolve(path, OWNED)
    assert {key: tree[key] for key in OWNED} == OWNED
    assert "auto" not in json.dumps(tree)


@pytest.mark.parametrize(("key", "written"), [("train_batch_size", 64), ("gradient_clipping", 0.5)])
def test_a_number_that_contradicts_the_run_names_both(
    key: str, written: float, tmp_path: Path
) -> None:
    message = refusal(tmp_path, {key: written})
    assert message.startswith(f"{key} is {written} but the run says {OWNED[key]}; write")


def test_auto_where_the_number_is_not_ours_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})
    assert message.startswith('zero_optimization.reduce_bucket_size = "auto": the run fills only')


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16 and fp16 are both enabled"),
        (
            {"bf16": {"enabled": True}, "torch_autocast": {"enabled": True}},
            "bf16 and torch_autocast are both enabled",
        ),
        ({"bf16": True}, "bf16 = true: an object is needed"),
        ({"zero_optimization": 2}, "zero_optimization = 2: an object is needed"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage = 4: must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": "2"}}, 'stage = "2": must be 0, 1, 2 or 3'),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer needs stage 1 or higher, the stage is 0",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param needs stage 3 or higher, the stage is 2",
        ),
        ("{", "not valid JSON: "),
        ("[]", "a JSON object is needed"),
        ('{"bf16": {}, "bf16": {}}', "not valid JSON: the key bf16 is there twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(tree: Any, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, tree)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match=r"own\.json: not valid JSON"):
        deepspeed_config.resolve(path, OWNED)


def test_a_missing_file_lists_what_ships() -> None:
    with pytest.raises(ConfigError) as caught:
        deepspeed_config.resolve(Path("ds_configs/zero9.json"), OWNED)
    message = str(caught.value)
    assert message.startswith("deepspeed = ds_configs/zero9.json: there is no such file")
    assert all(path.name in message for path in SHIPPED)


def test_what_ships_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert deepspeed_config.find(Path("ds_configs/zero2_bf16.json")).samefile(
        FOLDER / "zero2_bf16.json"
    )
    (tmp_path / "ds_configs").mkdir()
    own = tmp_path / "ds_configs/zero2_bf16.json"
    own.write_text("{}", "utf-8")
    assert deepspeed_config.find(Path("ds_configs/zero2_bf16.json")).samefile(own)


def test_the_file_on_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, {"train_batch_size": "auto"})
    before = path.read_bytes()
    deepspeed_config.resolve(path, OWNED)
    assert path.read_bytes() == before


def test_what_would_save_a_wrong_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text('{"zero_optimization": {"stage": 2, "round_robin_gradients": true}}', "utf-8")
    with pytest.raises(ConfigError, match=r"round_robin_gradients.*leave it out"):
        deepspeed_config.resolve(path, {})
