"""Fine-tuning by the real `deepspeed` launcher: two processes reach what one does."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.launch, pytest.mark.slow]

NAMES = ["cmrc2018", "chnsenticorp", "msra"]
STEPS = 12


@pytest.fixture(scope="module")
def tasks(write_task: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of each kind; what is judged fills two batches of one and one of another."""
    folder = tmp_path_factory.mktemp("launched")
    for name in NAMES:
        write_task(folder, name, 40 if name == "chnsenticorp" else 12, train=60)
    return folder


def finetune(launch: Any, processes: int, tasks: Path, model: Path, output: Path) -> None:
    done = launch(
        processes,
        [
            "--module", "lert_ds", "finetune", "all", str(model), f"task.data={tasks}",
            f"output={output}", "seeds=[1,2]", "train.epochs=0", f"train.steps={STEPS}",
            "train.batch_size=8", "train.micro_batch_size=4", "train.learning_rate=1e-3",
            "train.report_every=1", "evaluations_per_epoch=2",
            "deepspeed=ds_configs/zero2_fp32.json",
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def outputs(
    launch: Any, tasks: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """What one process and what two leave."""
    folder = tmp_path_factory.mktemp("outputs")
    for processes in (1, 2):
        finetune(launch, processes, tasks, tiny_model, folder / str(processes))
    return [folder / "1", folder / "2"]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_reach_what_one_does(outputs: list[Path], name: str, seed: int) -> None:
    records, scores, predictions = [], [], []
    for output in outputs:
        folder = output / name / f"seed-{seed}"
        lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
        records.append([json.loads(line) for line in lines])
        scores.append(json.loads((folder / "scores.json").read_text("utf-8")))
        predictions.append(json.loads((folder / "predictions-dev.json").read_text("utf-8")))
    assert [one["processes"] for one in scores] == [1, 2]
    for kind, keys in (("train", ["loss"]), ("valid", ["loss", "accuracy", "f1", "average"])):
        of_one, of_two = ([r for r in some if r["kind"] == kind] for some in records)
        assert len(of_one) == len(of_two) >= (STEPS if kind == "train" else 2)
        for key in keys:
            expected = [record[key] for record in of_one if key in record]
            assert [r[key] for r in of_two if key in r] == pytest.approx(expected, abs=1e-4), key
    assert scores[0]["dev"] == scores[1]["dev"]
    assert scores[0]["chosen_step"] == scores[1]["chosen_step"]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_summaries_tell_the_same(outputs: list[Path], name: str) -> None:
    one, two = (json.loads((o / name / "summary.json").read_text("utf-8")) for o in outputs)
    for key in ("scores", "best_seed", "seeds", "steps", "examples", "baselines", "files"):
        assert one[key] == two[key], key
    assert (one["processes"], two["processes"]) == (1, 2)
