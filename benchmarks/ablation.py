"""What pre-training gives on the tasks, and what each linguistic head adds to it.

    python benchmarks/ablation.py --text ../shared/data/text --tasks ../shared/data/tasks \
        --work runs/ablation --output benchmarks/results/ablation.json

Text: the Wikipedia passages, and the training examples' own text without their labels. Four models
of the quick start's shape and first weights: random, MLM alone, MLM + POS, MLM + POS + NER, each
with three seeds; each fine-tuned on every task, the seed of the fine-tuning that of the model.
Every step is the command that a user would type; what is finished is not done again.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lert_ds import machine
from lert_ds.finetune import text_files
from lert_ds.finetune.readers import PAIR, TEXT
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import find_files, read_examples
from lert_ds.finetune.tasks import find_task

SEEDS = (1, 2, 3)
STEPS = 6000
VARIANTS = {"random": None, "mlm": [], "pos": ["pos"], "pos-ner": ["pos", "ner"]}
"""Name to the linguistic tasks beside MLM; None: not pre-trained."""
TASKS: dict[str, list[str]] = {
    "peopledaily": ["train.epochs=2", "train.learning_rate=5e-4"],
    "ocnli": ["train.epochs=6", "train.learning_rate=1e-3", "train.batch_size=32"],
    "chnsenticorp": ["train.epochs=2", "train.learning_rate=5e-4", "evaluations_per_epoch=2"],
}
"""Task to what differs from its preset: rates for a tiny model, epochs for few examples."""
OF_PRETRAINING = [
    "deepspeed=ds_configs/cpu_bf16.json", "train.micro_batch_size=16", "train.report_every=100",
    "train.evaluate_every=2000", "train.save_every=2000",
]  # fmt: skip


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "corpus" / "manifest.json").is_file():
        _prepare(arguments)
    runs = list(itertools.product(SEEDS, VARIANTS, TASKS))
    for seed, variant in dict.fromkeys((seed, variant) for seed, variant, _ in runs):
        _pretrain(work, variant, seed)
    for seed, variant, task in runs:
        _finetune(arguments.tasks, work, variant, seed, task)
    result = {
        "command": " ".join(["python", "benchmarks/ablation.py", *sys.argv[1:]]),
        "machine": machine.description(("torch", "deepspeed", "transformers")),
        "pretraining": {"steps": STEPS, "options": OF_PRETRAINING, **_held_out(work)},
        "tasks": {task: _scores(work, task) for task in TASKS},
    }
    arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for line in _table(result):
        print(line)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="has wiki_{train,valid}.txt")
    parser.add_argument("--tasks", type=Path, required=True, help="a folder a task")
    parser.add_argument("--work", type=Path, required=True, help="corpora and runs")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def _call(*words: str, log: Path) -> None:
    """Run a command of ours in a process of its own."""
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **os.environ}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", "lert_ds", *words],
            env=environment, stdout=file, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"lert-ds {' '.join(words)}: see {log}")


def _prepare(arguments: argparse.Namespace) -> None:
    work: Path = arguments.work
    passages = (arguments.text / "wiki_train.txt").read_text("utf-8").split("\n")
    lines = [*passages, *_texts_of(arguments.tasks)]
    whole = "".join(f"{line.strip()}\n" for line in lines if line.strip())
    (work / "text.txt").write_text(whole, "utf-8")
    common = ["documents=lines", "held_out=0"]
    _call(
        "prepare", "prepare-quickstart", f"input={work / 'text.txt'}", f"output={work / 'corpus'}",
        *common, log=work / "prepare.log",
    )  # fmt: skip
    _call(
        "prepare", "prepare-quickstart", f"input={arguments.text / 'wiki_valid.txt'}",
        f"tokenizer={work / 'corpus'}", f"output={work / 'valid'}", *common,
        log=work / "prepare-valid.log",
    )  # fmt: skip


def _texts_of(folder: Path) -> Iterator[str]:
    """Yield the text of the examples to train on, and of no other."""
    for name in ("chnsenticorp", "ocnli", "peopledaily"):
        task, settings = find_task(name), TaskConfig(name=name, data=folder)
        files = find_files(settings, task)
        if task.layout is None:
            for example in read_examples(task, settings, files)["train"]:
                yield "".join(example.tokens)
        else:
            for _, row in text_files.rows(files["train"], task.layout.fields, task.layout.order):
                yield from (row[key] or "" for key in (TEXT, PAIR) if key in row)


def _model(work: Path, variant: str, seed: int) -> Path:
    return work / "pretrained" / f"{variant}-{seed}"


def _pretrain(work: Path, variant: str, seed: int) -> None:
    output, tasks = _model(work, variant, seed), VARIANTS[variant]
    if (output / "model" / "config.json").is_file():
        return
    # The first update of a warm-up has the rate 0: one step leaves the first weights as they are.
    steps = 1 if tasks is None else STEPS
    _call(
        "pretrain", "pretrain-quickstart", f"corpus={work / 'corpus'}",
        f"corpus_valid={work / 'valid'}", f"output={output}", f"seed={seed}",
        f"lip.tasks={json.dumps(tasks or [])}", *OF_PRETRAINING, f"train.steps={steps}",
        log=work / f"pretrain-{variant}-{seed}.log",
    )  # fmt: skip


def _finetuned(work: Path, variant: str, seed: int, task: str) -> Path:
    return work / "finetuned" / f"{task}-{variant}-{seed}"


def _finetune(tasks: Path, work: Path, variant: str, seed: int, task: str) -> None:
    output = _finetuned(work, variant, seed, task)
    if (output / "model" / "config.json").is_file():
        return
    _call(
        "finetune", task, str(_model(work, variant, seed) / "model"), f"task.data={tasks}",
        f"output={output}", f"seeds=[{seed}]", "train.report_every=100", *TASKS[task],
        log=work / f"finetune-{task}-{variant}-{seed}.log",
    )  # fmt: skip


def _held_out(work: Path) -> dict[str, dict[str, float]]:
    """Return the held-out MLM loss of each variant, the mean over seeds."""
    found = {}
    for variant, tasks in VARIANTS.items():
        if tasks is None:
            continue
        values = [
            json.loads((_model(work, variant, seed) / "summary.json").read_text("utf-8"))["valid"]
            for seed in SEEDS
        ]
        names = [name for name in values[0] if name.endswith(("/loss", "/accuracy"))]
        found[variant] = {name: statistics.fmean(one[name] for one in values) for name in names}
    return {"held_out": found}  # type: ignore[dict-item]


def _scores(work: Path, task: str) -> dict[str, Any]:
    found: dict[str, Any] = {"options": TASKS[task]}
    for variant in VARIANTS:
        summaries = [
            json.loads((_finetuned(work, variant, s, task) / "summary.json").read_text("utf-8"))
            for s in SEEDS
        ]
        name = summaries[0]["shown"][-1]
        values = [one["scores"]["dev"][name]["values"][0] for one in summaries]
        found[variant] = {
            "metric": name,
            "max": max(values),
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values),
            "values": values,
        }
    return found


def _table(result: dict[str, Any]) -> Sequence[str]:
    lines = ["| start | " + " | ".join(TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for variant in VARIANTS:
        cells = [result["tasks"][task][variant] for task in TASKS]
        shown = [
            f"{100 * c['max']:.1f} ({100 * c['mean']:.1f} ± {100 * c['deviation']:.1f})"
            for c in cells
        ]
        lines.append(f"| {variant} | {' | '.join(shown)} |")
    return lines


if __name__ == "__main__":
    main()
