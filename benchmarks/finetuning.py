"""Fine-tuning beside Hugging Face's Trainer with padding="max_length": speed, and scores.

    python benchmarks/finetuning.py speed --tasks ../shared/data/tasks \
        --vocabulary ../shared/data/vocab.txt --output benchmarks/results/finetuning-speed.json
    python benchmarks/finetuning.py scores --tasks ../shared/data/tasks \
        --model runs/ablation/pretrained/pos-ner-1/model \
        --output benchmarks/results/finetuning-scores.json

`speed`: LERT-small's shape, OCNLI at 128 and CMRC 2018 at 512, one pass over some examples, whole
processes that take turns on one core with one thread; rows a second from the end of the first step
to that of the last. Both read the same rows of the same windows in batches of one size; Trainer
shuffles and pads them all to the longest that there may be, as its examples do; what it pads to is
what differs, and the dropout of a processor. `scores`: the same model, rate, batch and epochs on
OCNLI, three seeds each, the accuracy of the last weights on its dev file by the same evaluation.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from lert_ds.machine import description

ROOT = Path(__file__).parents[1]


class Case(NamedTuple):
    """A task to time."""

    task: str
    max_length: int
    batch_size: int
    examples: int
    """Sentence pairs, or articles with their questions."""
    files: dict[str, str]


CASES = (
    Case("ocnli", 128, 16, 160, {"train": "train.3k.json", "dev": "dev.json"}),
    Case("cmrc2018", 512, 4, 8, {"train": "dev.json.gz", "dev": "trial.json"}),
)
PRECISIONS = {"fp32": "cpu_fp32", "bf16": "cpu_bf16"}
SEEDS = (1, 2, 3)
OF_SCORES = {"rate": 3e-4, "batch_size": 32, "epochs": 10}


def main() -> None:
    """Measure, and write the figures."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(_train_with_trainer(json.loads(arguments.worker))))
        return
    with tempfile.TemporaryDirectory() as name:
        parts = {"speed": _speed, "scores": _scores}
        found = parts[arguments.part](arguments, Path(name))
    result = {
        "command": " ".join(["python", "benchmarks/finetuning.py", *sys.argv[1:]]),
        "machine": description(("torch", "deepspeed", "transformers", "accelerate")),
        **found,
    }
    arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["speed", "scores"], default="speed")
    parser.add_argument("--tasks", type=Path, help="a folder a task")
    parser.add_argument("--vocabulary", type=Path, help="of the model of `speed`")
    parser.add_argument("--model", type=Path, help="of `scores`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _execute(command: list[str]) -> str:
    """Run a command on one core with one thread and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        ["taskset", "--cpu-list", "0", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def _ours(case: Case, data: Path, model: Path, folder: Path, *options: str) -> Path:
    """Fine-tune by the command, and return the folder of its one seed."""
    seed = next(option for option in options if option.startswith("seeds="))
    _execute(
        [
            sys.executable, "-m", "lert_ds", "finetune", case.task, str(model),
            f"task.data={data}", *(f"task.{split}={name}" for split, name in case.files.items()),
            f"task.max_length={case.max_length}", f"output={folder}",
            f"train.micro_batch_size={case.batch_size}", "train.report_every=1",
            "train.save_every=0", "overwrite=true", *options,
        ]
    )  # fmt: skip
    return folder / f"seed-{json.loads(seed.removeprefix('seeds='))[0]}"


def _speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = folder / "small"
    _write_small(model, arguments.vocabulary)
    results: dict[str, Any] = {}
    for case, precision in itertools.product(CASES, arguments.precision):
        data = folder / case.task
        if not data.is_dir():
            _cut(case, arguments.tasks / case.task, data)
        rates: dict[str, list[float]] = {"ours": [], "trainer": []}
        for turn in range(arguments.rounds):
            seed = _ours(
                case, data, model, folder / "run", f"train.batch_size={case.batch_size}",
                "train.epochs=1", "seeds=[1]",
                f"deepspeed=ds_configs/{PRECISIONS[precision]}.json",
            )  # fmt: skip
            lines = (seed / "metrics.jsonl").read_text("utf-8").splitlines()
            times = [r["time"] for line in lines if (r := json.loads(line))["kind"] == "train"]
            rates["ours"].append((len(times) - 1) * case.batch_size / (times[-1] - times[0]))
            order = {
                "case": case._asdict(), "data": str(data), "model": str(model), "seed": 1,
                "epochs": 1, "rate": 3e-5, "bf16": precision == "bf16", "evaluate": False,
            }  # fmt: skip
            found = json.loads(
                _execute([sys.executable, __file__, "--worker", json.dumps(order)]).splitlines()[-1]
            )
            rates["trainer"].append(found["rows_per_second"])
            print(case.task, precision, turn, {name: round(r[-1], 2) for name, r in rates.items()})
        ratios = [a / b for a, b in zip(rates["ours"], rates["trainer"], strict=True)]
        results[f"{case.task} {precision}"] = {
            "max_length": case.max_length,
            "batch_size": case.batch_size,
            "rows_per_second": {name: statistics.median(found) for name, found in rates.items()},
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "rows": found["rows"],
            "mean_length": found["mean_length"],
        }
    return {"what": "LERT-small's shape, random weights, one core, one thread", "cases": results}


def _scores(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    case = CASES[0]._replace(batch_size=int(OF_SCORES["batch_size"]))
    data = arguments.tasks / case.task
    found: dict[str, list[float]] = {"ours": [], "trainer": []}
    for seed in SEEDS:
        place = _ours(
            case, data, arguments.model, folder / "run", f"train.batch_size={case.batch_size}",
            f"train.epochs={OF_SCORES['epochs']}", f"train.learning_rate={OF_SCORES['rate']}",
            # One evaluation, at the end: the last weights, as Trainer's.
            f"seeds=[{seed}]", "deepspeed=ds_configs/cpu_fp32.json", "choose=last",
        )  # fmt: skip
        scores = json.loads((place / "scores.json").read_text("utf-8"))
        found["ours"].append(scores["dev"]["accuracy"])
        order = {
            "case": case._asdict(), "data": str(data), "model": str(arguments.model), "seed": seed,
            "epochs": OF_SCORES["epochs"], "rate": OF_SCORES["rate"], "bf16": False,
            "evaluate": True,
        }  # fmt: skip
        printed = _execute([sys.executable, __file__, "--worker", json.dumps(order)])
        found["trainer"].append(json.loads(printed.splitlines()[-1])["accuracy"])
        print(seed, {name: round(values[-1], 4) for name, values in found.items()})
    return {
        "what": f"OCNLI, 3k examples, {OF_SCORES}, accuracy on dev of the last weights",
        "accuracy": {
            name: {"mean": statistics.fmean(v), "deviation": statistics.stdev(v), "values": v}
            for name, v in found.items()
        },
    }


def _write_small(folder: Path, vocabulary: Path) -> None:
    import torch

    from lert_ds import model_dir
    from lert_ds.architecture import SIZES
    from lert_ds.configuration_lert import LertConfig
    from lert_ds.modeling_lert import LertForPreTraining

    torch.manual_seed(0)
    small = SIZES["small"]
    config = LertConfig(
        vocab_size=len(vocabulary.read_text("utf-8").splitlines()),
        num_hidden_layers=small["layers"],
        hidden_size=small["hidden_size"],
        num_attention_heads=small["heads"],
        intermediate_size=small["intermediate_size"],
    )
    place = folder.parent / "vocabulary"
    place.mkdir()
    (place / "vocab.txt").write_bytes(vocabulary.read_bytes())
    model_dir.save(LertForPreTraining(config), place, folder)


def _cut(case: Case, source: Path, target: Path) -> None:
    """Write the first examples of a task's files, so that a pass over them takes a minute."""
    from lert_ds.finetune import text_files

    target.mkdir()
    for name in case.files.values():
        if case.task == "ocnli":
            lines = text_files.read(source / name).split("\n")[: case.examples]
            (target / name).write_text("\n".join(lines) + "\n", "utf-8")
        else:
            tree = text_files.json_of(source / name)
            tree["data"] = tree["data"][: case.examples]
            content = json.dumps(tree, ensure_ascii=False).encode()
            if name.endswith(".gz"):
                import gzip

                content = gzip.compress(content)
            (target / name).write_bytes(content)


def _train_with_trainer(order: dict[str, Any]) -> dict[str, Any]:
    """Train with Hugging Face's Trainer in this process, and return its speed and its score."""
    import numpy as np
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from lert_ds import model_dir
    from lert_ds.finetune.batches import collate
    from lert_ds.finetune.seed_run import load
    from lert_ds.finetune.settings import TaskConfig
    from lert_ds.finetune.task_data import open_task
    from lert_ds.finetune.task_evaluation import evaluate_model

    case = Case(**order["case"])
    folder = Path(order["model"])
    settings = TaskConfig(
        name=case.task, data=Path(order["data"]), max_length=case.max_length,
        **{split: Path(name) for split, name in case.files.items()},
    )  # fmt: skip
    data = open_task(settings, folder, model_dir.read_config(folder))
    features = data.train.features
    torch.manual_seed(order["seed"])
    model = load(str(folder), data.task)

    class Padded(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        """The same rows, padded to the longest that there may be."""

        def __len__(self) -> int:
            return len(features)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            batch = collate(features, [index], data.pad_id)
            length = batch.input_ids.shape[1]
            missing = case.max_length - length
            mask = torch.ones(length, dtype=torch.int64)
            row = {
                "input_ids": torch.nn.functional.pad(
                    batch.input_ids[0], (0, missing), value=data.pad_id
                ),
                "token_type_ids": torch.nn.functional.pad(batch.token_type_ids[0], (0, missing)),
                "attention_mask": torch.nn.functional.pad(mask, (0, missing)),
            }
            if data.task.kind == "spans":
                row["start_positions"], row["end_positions"] = batch.labels[0]
            else:
                row["labels"] = batch.labels[0]
            return row

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When each step ended."""

        times: list[float] = []  # noqa: RUF012

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            place,
            per_device_train_batch_size=case.batch_size,
            num_train_epochs=order["epochs"],
            learning_rate=order["rate"],
            warmup_steps=0.1,
            weight_decay=0.01,
            adam_epsilon=1e-6,
            bf16=order["bf16"],
            use_cpu=True,
            optim="adamw_torch_fused",
            seed=order["seed"],
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=Padded(), callbacks=[clock]).train()
    steps = len(clock.times) - 1
    result: dict[str, Any] = {
        "rows_per_second": steps * case.batch_size / (clock.times[-1] - clock.times[0]),
        "rows": len(features),
        "mean_length": float(np.mean([len(feature.input_ids) for feature in features])),
    }
    if order["evaluate"]:
        values, _ = evaluate_model(model, data, data.dev)
        result |= values
    return result


if __name__ == "__main__":
    main()
