"""DeepSpeed's JSON: checked for what DeepSpeed accepts in silence, and filled from the run.

The JSON owns the machine (ZeRO, offload, precision, communication), the run's configuration the
science. A number of ours is "auto" in the JSON; another value there must be the same number.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lert_ds.errors import ConfigError

OWNED_BY_THE_RUN = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
"""Filled from the run's configuration where the JSON says "auto" or nothing."""

ACCEPTED = frozenset(
    {
        *OWNED_BY_THE_RUN,
        "activation_checkpointing",
        "aio",
        "bf16",
        "checkpoint",
        "comms_logger",
        "communication_data_type",
        "compile",
        "data_types",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "fp16",
        "gradient_allreduce_op",
        "gradient_predivide_factor",
        "memory_breakdown",
        "prescale_gradients",
        "steps_per_print",
        "timers",
        "torch_autocast",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
"""Top-level keys that DeepSpeed 0.19 reads and this trainer allows; DeepSpeed ignores any other."""

AUTOCAST = frozenset({"enabled", "dtype", "lower_precision_safe_modules"})
"""The keys of torch_autocast; DeepSpeed ignores any other, and trains in fp32 then."""

ELSEWHERE = {
    "optimizer": "the optimizer is set in the run's configuration, under optimizer",
    "scheduler": "the learning rate is set in the run's configuration, under schedule",
    "wandb": "trackers are set in the run's configuration, under tracking",
    "tensorboard": "trackers are set in the run's configuration, under tracking",
    "csv_monitor": "every run writes metrics.jsonl already",
    "elasticity": "DeepSpeed has retired it; a checkpoint of ZeRO 1 to 3 changes its world size",
    "amp": "DeepSpeed has retired apex; use bf16, fp16 or torch_autocast",
    "compression_training": "DeepSpeed has retired it; see lert-ds prune and export",
    "sparse_attention": "DeepSpeed has retired it",
    "progressive_layer_drop": "DeepSpeed has retired it",
    "curriculum_learning": "DeepSpeed has retired it",
}

Precision = Literal["fp32", "bf16", "fp16", "autocast"]


def find(path: Path) -> Path:
    """Return where the JSON is: as given, or under the checkout that this package runs from."""
    checkout = Path(__file__).parents[2]
    for candidate in (path, checkout / path):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.name for file in (checkout / "ds_configs").glob("*.json")))
    hint = f"; ds_configs has {known}" if known else ""
    raise ConfigError(f"deepspeed = {path}: there is no such file{hint}")


def resolve(path: Path, owned: Mapping[str, float | int]) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the JSON at `path` with the run's numbers filled in.

    Raises:
        ConfigError: not JSON, a key that DeepSpeed would ignore or refuse, or a number that
            contradicts the run's.
    """
    path = find(path)
    tree = _read(path)
    for key, value in owned.items():
        written = tree.get(key, "auto")
        if written not in ("auto", value):
            raise ConfigError(
                f"{path}: {key} is {json.dumps(written)} but the run says {value}; write "
                '"auto" there, the run\'s configuration owns this number'
            )
        tree[key] = value
    tree.setdefault("steps_per_print", 10**9)  # the trainer reports
    _check_rest(path, tree)
    if tree.get("zero_optimization", {}).get("round_robin_gradients"):
        raise ConfigError(
            f"{path}: zero_optimization.round_robin_gradients: DeepSpeed 0.19 then reads the "
            "master weights of other parameters, and a wrong model is saved; leave it out"
        )
    return tree


def stage_and_precision(path: Path) -> tuple[int, Precision]:
    """Return the ZeRO stage and the precision of the JSON at `path`.

    Raises:
        ConfigError: not JSON, or a key that DeepSpeed would ignore or refuse.
    """
    tree = _read(find(path))
    return stage(tree), precision(tree)


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON at `path`, whose keys are known."""
    try:
        tree = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_doubles)
    except ValueError as error:  # JSON, UTF-8, or a key twice
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a JSON object is needed, with keys like zero_optimization")
    for key in tree:
        _check_key(path, key)
    return tree


def precision(tree: Mapping[str, Any]) -> Precision:
    """Return the precision that a configuration trains in."""
    for name in ("bf16", "fp16"):
        if tree.get(name, {}).get("enabled", False):
            return name
    return "autocast" if tree.get("torch_autocast", {}).get("enabled", False) else "fp32"


def stage(tree: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of a configuration."""
    return int(tree.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(tree: Mapping[str, Any]) -> bool:
    """Return whether the optimizer runs on the host's processors."""
    return _offloads(tree, "offload_optimizer")


def offloads_parameters(tree: Mapping[str, Any]) -> bool:
    """Return whether the weights wait on the host."""
    return _offloads(tree, "offload_param")


def _offloads(tree: Mapping[str, Any], key: str) -> bool:
    section = tree.get("zero_optimization", {}).get(key)
    return isinstance(section, dict) and bool(section.get("device", "none") != "none")


def _check_key(path: Path, key: str) -> None:
    if key in ELSEWHERE:
        raise ConfigError(f"{path}: remove the key {key}: {ELSEWHERE[key]}")
    if key not in ACCEPTED:
        near = difflib.get_close_matches(key, ACCEPTED, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(ACCEPTED))}"
        # DeepSpeed passes over a misspelt key in silence: "zero_optimisation" would run at stage 0.
        raise ConfigError(f"{path}: unknown key {key}; {hint}")


def _check_rest(path: Path, tree: Mapping[str, Any]) -> None:
    leftover = [key for key, value in _leaves(tree, "") if value == "auto"]
    if leftover:
        raise ConfigError(
            f'{path}: {", ".join(leftover)} = "auto": the run fills only '
            f"{', '.join(OWNED_BY_THE_RUN)}; write a value"
        )
    sections = ("bf16", "fp16", "torch_autocast", "zero_optimization")
    for name in sections:
        if not isinstance(tree.get(name, {}), dict):
            raise ConfigError(f"{path}: {name} = {json.dumps(tree[name])}: an object is needed")
    autocast = tree.get("torch_autocast", {})
    for key in autocast.keys() - AUTOCAST:  # the other sections DeepSpeed checks itself
        raise ConfigError(
            f"{path}: unknown key torch_autocast.{key}; known keys: {', '.join(sorted(AUTOCAST))}"
        )
    if (written := tree.get("zero_optimization", {}).get("stage", 0)) not in (0, 1, 2, 3):
        raise ConfigError(
            f"{path}: zero_optimization.stage = {json.dumps(written)}: must be 0, 1, 2 or 3"
        )
    for offloads, name, lowest in (
        (offloads_optimizer, "offload_optimizer", 1),
        (offloads_parameters, "offload_param", 3),
    ):
        if offloads(tree) and stage(tree) < lowest:
            raise ConfigError(
                f"{path}: zero_optimization.{name} needs stage {lowest} or higher, "
                f"the stage is {stage(tree)}"
            )
    on = [name for name in sections[:3] if tree.get(name, {}).get("enabled", False)]
    if len(on) > 1:
        raise ConfigError(f"{path}: {' and '.join(on)} are both enabled; keep one")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {double} is there twice")
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found
