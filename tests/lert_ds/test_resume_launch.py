"""Interrupted runs that go on, by the real `deepspeed` launcher: exact, and in other layouts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining

pytestmark = [pytest.mark.launch, pytest.mark.slow]

STEPS, STOP, BATCH = 9, 4, 8
MACHINES = [
    *(f"zero{stage}_{precision}" for precision in ("fp32", "bf16", "fp16") for stage in (0, 1, 2)),
    "zero1_autocast",
    "zero2_bf16_offload",
    # Last: ZeRO-3 gives the process a linear function of DeepSpeed's own, which rounds otherwise.
    "zero3_fp32", "zero3_bf16", "zero3_fp16", "zero3_bf16_offload",
]  # fmt: skip
TAUGHT = ["zero0_bf16", "zero1_bf16", "zero2_fp16", "zero2_fp32", "zero3_fp32", "zero3_bf16"]
CASES = [
    *(("pretrain", machine) for machine in MACHINES),
    *(("distill", machine) for machine in TAUGHT),
    *(("recover", machine) for machine in TAUGHT),
]
CASES.sort(key=lambda case: case[1].startswith("zero3"))
TIMED = ("time", "tokens_per_second", "mfu", "memory_gib", "data_wait_share")
RUN = {
    "schedule": {"warmup_steps": 2},
    "lip": {"pos": 0.9, "ner": 0.9, "dep": 0.9},
    "train": {
        "steps": STEPS, "batch_size": BATCH, "micro_batch_size": 2, "learning_rate": 3e-3,
        "report_every": 1, "evaluate_every": STEPS, "save_every": STEPS, "data_workers": 0,
    },
}  # fmt: skip
SHAPE = {"layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 64, "positions": 32}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSpeed configurations that are not among those of the project: every stage in fp16."""
    folder = tmp_path_factory.mktemp("machines")
    for stage in range(4):
        tree = {
            # So high that the first steps overflow and the scale moves.
            "fp16": {"enabled": True, "initial_scale_power": 24, "loss_scale_window": 3},
            "zero_optimization": {"stage": stage},
        }
        (folder / f"zero{stage}_fp16.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture(scope="module")
def models(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, and a model that was pruned from it."""
    folder = tmp_path_factory.mktemp("models")
    for name, intermediate_size in (("teacher", 64), ("pruned", 32)):
        torch.manual_seed(0)
        shape = LertConfig(
            vocab_size=45, num_hidden_layers=2, hidden_size=32, num_attention_heads=4,
            intermediate_size=intermediate_size, max_position_embeddings=32,
            initializer_range=0.2, tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
        )  # fmt: skip
        model_dir.save(LertForPreTraining(shape), tiny_corpus, folder / name)
    return folder


def configuration(
    command: str, machine: str, corpus: Path, output: Path, machines: Path, models: Path
) -> dict[str, Any]:
    folder = machines if machine.endswith("fp16") else Path("ds_configs")
    tree = RUN | {
        "output": str(output),
        "corpus": str(corpus),
        "deepspeed": str(folder / f"{machine}.json"),
    }
    match = {"feature": "hidden", "loss": "hidden_mse", "layers": "uniform"}
    if command == "pretrain":
        return tree | {"architecture": SHAPE}
    taught = tree | {"teacher": str(models / "teacher"), "teacher_precision": "fp32"}
    if command == "distill":
        projected = match | {"proj": ["linear", 16, 32, {"lr": 1e-2}]}
        student = {"layers": 2, "hidden_size": 16, "heads": 2, "intermediate_size": 32,
                   "positions": 32}  # fmt: skip
        return taught | {"student": student, "distillation": {"intermediate_matches": [projected]}}
    return taught | {
        "model": str(models / "pruned"),
        "distillation": {"intermediate_matches": [match]},
    }


def lines(output: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Return what was reported last for each step, less what the clock decides."""
    found = {}
    for text in (output / "metrics.jsonl").read_text("utf-8").splitlines():
        line = json.loads(text)
        kind, step = line.pop("kind"), line.pop("step")
        if kind != "event":
            found[kind, step] = {k: v for k, v in line.items() if k not in TIMED}
    return found


def events(output: Path) -> list[str]:
    text = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line["message"] for line in map(json.loads, text) if line["kind"] == "event"]


def weights(output: Path) -> dict[str, torch.Tensor]:
    model, report = model_dir.load(output / "model", LertForPreTraining)
    assert not report.random
    return model.state_dict()


def samples(stream: Path) -> list[int]:
    """Return the samples that all processes trained on, in order."""
    taken: list[int] = []
    for path in stream.parent.glob(f"{stream.name}-*"):
        for line in path.read_text().splitlines():
            first, count = map(int, line.split())
            taken += range(first, first + count)
    return sorted(taken)


@pytest.fixture(scope="module")
def exact(
    launch_runs: Any,
    tiny_corpus: Path,
    machines: Path,
    models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Every case twice: undisturbed in `whole`, stopped and started again in `parts`."""
    folder = tmp_path_factory.mktemp("exact")
    runs = []
    for command, machine in CASES:
        whole, parts = (folder / kind / f"{command}-{machine}" for kind in ("whole", "parts"))
        for output, options in (
            (whole, {}),
            (parts, {"stop_after": STOP, "stream": str(folder / f"{command}-{machine}")}),
            (parts, {"stream": str(folder / f"{command}-{machine}")}),
        ):
            tree = configuration(command, machine, tiny_corpus, output, machines, models)
            runs.append((command, tree, options))
    launch_runs(2, runs, folder)
    return folder


@pytest.mark.parametrize(("command", "machine"), CASES)
def test_an_interrupted_run_is_bit_for_bit_the_undisturbed_one(
    exact: Path, command: str, machine: str
) -> None:
    name = f"{command}-{machine}"
    whole, parts = exact / "whole" / name, exact / "parts" / name
    told = events(parts)
    # One step late: the word of one process reaches all at the end of the next step.
    assert "saved and stopped by SIGUSR1; the same command goes on from here" in told
    assert f"resumed from step-{STOP + 1}" in told
    expected, found = lines(whole), lines(parts)
    assert found.keys() == expected.keys()
    assert len(found) == STEPS + 1
    for key, values in expected.items():
        assert found[key] == values, key
    if machine.endswith("fp16"):
        scales = [expected["train", step]["loss_scale"] for step in range(1, STEPS + 1)]
        assert len(set(scales)) > 1, "a scale that does not move shows nothing"
    after = weights(parts)
    assert all(torch.equal(weight, after[key]) for key, weight in weights(whole).items())
    assert samples(exact / name) == list(range(STEPS * BATCH))


def elastic(
    launch_runs: Any,
    corpus: Path,
    folder: Path,
    parts: Sequence[tuple[int, str, Mapping[str, Any]]],
    output: Path,
    stop_after: int,
) -> None:
    """Train one run in parts: (processes, machine, changes of `train`), a launch each."""
    for number, (processes, machine, changes) in enumerate(parts):
        tree = configuration("pretrain", machine, corpus, output, folder, folder)
        tree |= {"train": {**RUN["train"], **changes}}  # type: ignore[dict-item]
        last = number == len(parts) - 1
        options = {"stream": str(output) + ".stream"} | ({} if last else {"stop_after": stop_after})
        launch_runs(processes, [("pretrain", tree, options)], folder)


def test_another_number_of_processes_goes_on_with_the_same_stream(
    launch_runs: Any, exact: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    parts = [(2, "zero2_fp32", {}), (1, "zero2_fp32", {}), (2, "zero2_fp32", {})]
    elastic(launch_runs, tiny_corpus, tmp_path, parts, output, stop_after=2)
    expected, found = lines(exact / "whole/pretrain-zero2_fp32"), lines(output)
    for key, values in expected.items():
        assert found[key]["loss"] == pytest.approx(values["loss"], abs=1e-5), key
        assert found[key].get("learning_rate") == values.get("learning_rate")
    assert samples(Path(str(output) + ".stream")) == list(range(STEPS * BATCH))


def test_another_stage_precision_and_micro_batch_go_on(
    launch_runs: Any, exact: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    def run(output: Path, machines: Sequence[str], micro: Sequence[int] = (2, 2, 2)) -> list[Any]:
        runs = []
        for number, (machine, size) in enumerate(zip(machines, micro, strict=True)):
            tree = configuration("pretrain", machine, tiny_corpus, output, tmp_path, tmp_path)
            tree |= {"train": {**RUN["train"], "micro_batch_size": size}}  # type: ignore[dict-item]
            last = number == len(machines) - 1
            options = {"stream": str(output) + ".stream"} | ({} if last else {"stop_after": 2})
            runs.append(("pretrain", tree, options))
        return runs

    names = ("stages", "replicas", "precisions", "micro")
    stages, replicas, precisions, micro = (tmp_path / name for name in names)
    runs = [
        *run(replicas, ["zero0_fp32", "zero1_fp32", "zero0_fp32"]),
        *run(micro, ["zero2_fp32"] * 3, [2, 4, 3]),
        *run(precisions, ["zero2_bf16", "zero1_fp32", "zero1_bf16"]),
        *run(stages, ["zero2_fp32", "zero3_fp32", "zero1_fp32"]),
    ]
    launch_runs(2, runs, tmp_path)
    expected = lines(exact / "whole/pretrain-zero2_fp32")
    for output, tolerance in ((stages, 1e-5), (replicas, 1e-5), (precisions, 0.15), (micro, 1.5)):
        found = lines(output)
        for key, values in expected.items():
            assert found[key]["loss"] == pytest.approx(values["loss"], abs=tolerance), key
        assert samples(Path(str(output) + ".stream")) == list(range(STEPS * BATCH))
    # 8 instances on two processes: 3 does not divide a share of 4, so it is 2.
    assert any("train.micro_batch_size: 4 → 3" in event for event in events(micro))


GROWING = {"batch_warmup": [[0, 4], [3, BATCH]], "lengths": [[0, 8], [6, 32]]}
GROWN = [
    "zero0_fp32", "zero1_fp32", "zero2_fp32", "zero3_fp32", "zero1_bf16", "zero2_bf16",
]  # fmt: skip
GROWN_SAMPLES = 3 * 4 + 6 * BATCH


@pytest.fixture(scope="module")
def grown(launch_runs: Any, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose batch and rows grow: undisturbed, and stopped where each of them does."""
    folder = tmp_path_factory.mktemp("grown")
    runs = []
    for machine in GROWN:
        stream = {"stream": str(folder / machine)}
        stopped = {"stop_after": 2, **stream}  # one step late: after steps 3 and 6
        parts = [("whole", {}), ("parts", stopped), ("parts", stopped), ("parts", stream)]
        for kind, options in parts:
            output = folder / kind / machine
            tree = configuration("pretrain", machine, tiny_corpus, output, folder, folder)
            tree |= {"train": {**RUN["train"], **GROWING}}  # type: ignore[dict-item]
            runs.append(("pretrain", tree, options))
    launch_runs(2, runs, folder)
    return folder


@pytest.mark.parametrize("machine", GROWN)
def test_a_growing_run_that_is_stopped_where_it_grows_is_the_undisturbed_one(
    grown: Path, machine: str
) -> None:
    whole, parts = grown / "whole" / machine, grown / "parts" / machine
    assert [line for line in events(parts) if line.startswith("resumed")] == [
        "resumed from step-3", "resumed from step-6",
    ]  # fmt: skip
    assert lines(parts) == lines(whole)
    found = [lines(whole)["train", step]["samples"] for step in range(1, STEPS + 1)]
    assert found == [4, 8, 12, 20, 28, 36, 44, 52, GROWN_SAMPLES]
    after = weights(parts)
    assert all(torch.equal(weight, after[key]) for key, weight in weights(whole).items())
    assert samples(grown / machine) == list(range(GROWN_SAMPLES))


def test_a_growing_run_goes_on_with_another_number_of_processes(
    launch_runs: Any, grown: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    parts = [(processes, "zero2_fp32", GROWING) for processes in (2, 1, 2)]
    elastic(launch_runs, tiny_corpus, tmp_path, parts, output, stop_after=2)
    expected, found = lines(grown / "whole/zero2_fp32"), lines(output)
    for key, values in expected.items():
        assert found[key]["loss"] == pytest.approx(values["loss"], abs=1e-5), key
    assert samples(Path(str(output) + ".stream")) == list(range(GROWN_SAMPLES))
