"""Distillation on one processor core: speed, memory and losses, beside TextBrewer's own training.

    python benchmarks/distilling.py --corpus corpora/bench-128 --output benchmarks/results/…json
    python benchmarks/distilling.py --corpus corpora/bench --pair "LERT-base → LERT-small"
    python benchmarks/distilling.py --corpus corpora/bench-128 --parity

The same random teacher and student, instances, masks, batches, KD, hidden matches and hard labels
in whole processes that take turns, so that a machine whose speed drifts slows all: `lert-ds
distill` (ZeRO 0: one process has nothing to partition) and `GeneralDistiller.train` as in
`textbrewer_loop.py`, which has fp32 alone. Ours in fp32; with its teacher in int8; with a student
in fp32 and the teacher's answers read from a `teacher_cache` that an epoch before has filled
(features, and the largest logits); and all in bf16 where the processor multiplies it. With `--kd`
there are no matches, so that the cache holds logits alone. A step is the process's own CPU time
between two demands for a batch, which other work on the machine changes less than the time of day;
the first steps warm up. Memory is resident memory: its peak up to
the end of the measured steps, and what that is above the memory of the process when both models
were loaded and there was no optimizer yet. `--parity` trains both from equal weights without
dropout and tells how far apart each loss is in each step.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lert_ds.machine import description

ROOT = Path(__file__).parents[1]
WARM_UP_STEPS = 2
TEMPERATURE = 8.0
HARD_LABEL_WEIGHT = 1.0
LEARNING_RATE = 4e-4  # with the temperature, MiniRBT's
SEED = 0

T = TypeVar("T")


class Shape(NamedTuple):
    """What a model is."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int


class Pair(NamedTuple):
    """Who teaches whom, on how many instances a step."""

    teacher: Shape
    student: Shape
    batch_size: int

    def layers(self) -> list[list[int]]:
        """Return [teacher's, student's] layers that are matched: embeddings and every layer."""
        ratio = self.teacher.layers // self.student.layers
        return [[ratio * layer, layer] for layer in range(self.student.layers + 1)]


PAIRS = {
    "6 × 192 → 3 × 96": Pair(Shape(6, 192, 4, 768), Shape(3, 96, 4, 384), 8),
    "LERT-base → LERT-small": Pair(Shape(12, 768, 12, 3072), Shape(12, 256, 4, 1024), 4),
}
PARITY_PAIR = "6 × 192 → 3 × 96"
THEIRS = "TextBrewer, fp32"


class Side(NamedTuple):
    """How ours trains."""

    precision: str
    """Of the student."""
    teacher: str
    """Precision of the teacher."""
    cached: bool = False
    """Whether its answers are read."""


OURS = {
    "ours, fp32": Side("fp32", "fp32"),
    "ours, fp32, teacher int8": Side("fp32", "int8"),
    "ours, fp32, teacher cached": Side("fp32", "fp32", cached=True),
    "ours, bf16": Side("bf16", "bf16"),
}
SETTING = (
    "KD (ce, temperature 8), {matches}hard labels; CPU time of one thread on one core, in fp32 "
    "unless said"
)
MATCHES = "hidden_mse with a projection at the embeddings and every layer of the student, "
CACHED_INSTANCES = 32
"""Of the corpus that a cache is filled for: its epoch has to go by first."""

CONFIGURATION = """\
teacher = "{folder}/teacher"
corpus = "{corpus}"
output = "{folder}/run"
overwrite = true
deepspeed = "{root}/ds_configs/zero0_{precision}.json"
teacher_precision = "{teacher}"
{cache}seed = {seed}
lip.tasks = []
student.model = "{folder}/student"
train = {{ steps = {steps}, batch_size = {batch_size}, micro_batch_size = {batch_size}, \
learning_rate = {rate}, evaluate_every = 0, save_every = 0, data_workers = 0 }}

[distillation]
temperature = {temperature}
hard_label_weight = {hard_label_weight}
intermediate_matches = {matches}
"""


class Meter:
    """When batches were asked for, and the resident memory: of either side alike."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.loaded = self.peak = 0.0

    def models_are_loaded(self) -> None:
        """Take the memory that counts as that of the loaded models."""
        import torch

        for thing in gc.get_objects():  # weights are mapped: what nobody has read is not resident
            if isinstance(thing, torch.nn.Parameter):
                thing.sum()
        self.loaded = resident_mib("VmRSS")

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield `batches`; a step ends where the next one is asked for."""
        iterator = iter(batches)
        while True:
            self.times.append(time.process_time())
            self.peak = resident_mib("VmHWM")
            yield next(iterator)

    def result(self) -> dict[str, float]:
        """Return what was measured."""
        steps = len(self.times) - 1 - WARM_UP_STEPS
        return {
            "steps_per_second": steps / (self.times[-1] - self.times[WARM_UP_STEPS]),
            "peak_mib": self.peak,
            "extra_mib": self.peak - self.loaded,
        }


def resident_mib(name: str) -> float:
    """Return a line of /proc/self/status: VmRSS, what is resident, or VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def run_ours(
    folder: Path, corpus: Path, pair: Pair, steps: int, side: Side, *, matches: bool
) -> dict[str, float]:
    """Run `lert-ds distill` in this process; the meter stands between it and its batches."""
    from lert_ds import cli, training
    from lert_ds.train.trainer import Data

    told = (
        f'[{{ feature = "hidden", loss = "hidden_mse", layers = {pair.layers()}, '
        'proj = "linear" }]'
    )
    cache = f"{folder}/cache-{pair.batch_size}-{matches}"
    config = folder / "run.toml"
    config.write_text(
        CONFIGURATION.format(
            folder=folder, corpus=corpus, root=ROOT, precision=side.precision, seed=SEED,
            steps=steps, batch_size=pair.batch_size, rate=LEARNING_RATE,
            matches=told if matches else "[]", temperature=TEMPERATURE, teacher=side.teacher,
            hard_label_weight=HARD_LABEL_WEIGHT,
            cache=f'teacher_cache = "{cache}"\n' if side.cached else "",
        ),
        "utf-8",
    )  # fmt: skip
    meter, fit = Meter(), training.fit

    def measured_fit(*arguments: Any, **options: Any) -> Any:
        meter.models_are_loaded()
        run, objective, data, *rest = arguments
        batches = data.batches

        def measured_batches(*these: Any) -> Data:
            found: Data = batches(*these)
            return found._replace(training=lambda *place: meter.watch(found.training(*place)))

        object.__setattr__(data, "batches", measured_batches)
        return fit(run, objective, data, *rest, **options)

    training.fit = measured_fit
    cli.main(["distill", str(config)])
    return meter.result()


def run_textbrewer(
    folder: Path, corpus: Path, pair: Pair, steps: int, *, matches: bool
) -> dict[str, float]:
    """Run TextBrewer's training in this process."""
    import textbrewer_loop

    meter = Meter()
    distiller = textbrewer_loop.distiller(
        folder / "teacher", folder / "student", textbrewer_configuration(pair, matches=matches)
    )
    meter.models_are_loaded()
    textbrewer_loop.train(
        distiller,
        meter.watch(batches_of(corpus, pair.batch_size)),
        steps,
        learning_rate=LEARNING_RATE,
        largest_norm=1.0,
    )
    return meter.result()


def textbrewer_configuration(pair: Pair, *, matches: bool = True) -> dict[str, Any]:
    """Return what `CONFIGURATION` says in TextBrewer's own words."""
    return {
        "temperature": TEMPERATURE,
        "hard_label_weight": HARD_LABEL_WEIGHT,
        "intermediate_matches": [
            {
                "layer_T": of_teacher, "layer_S": of_student,
                "feature": "hidden", "loss": "hidden_mse", "weight": 1.0,
                "proj": ["linear", pair.student.hidden_size, pair.teacher.hidden_size],
            }
            for of_teacher, of_student in (pair.layers() if matches else ())
        ],
    }  # fmt: skip


def batches_of(folder: Path, batch_size: int) -> Iterator[Any]:
    """Yield the batches that `lert-ds distill` trains on."""
    from lert_ds.data.loader import training_batches
    from lert_ds.data.masking import MaskingConfig
    from lert_ds.data.sampler import MicroBatches
    from lert_ds.data.shards import Corpus

    corpus = Corpus([folder])
    order = MicroBatches(len(corpus), SEED, batch_size, batch_size)
    return (batch for _, batch in training_batches(corpus, MaskingConfig(), order))


def write_models(
    folder: Path, corpus: Path, pair: Pair, *, spread: float = 0.02, dropout: float = 0.1
) -> None:
    """Write a random teacher and a random student for the vocabulary of a corpus.

    Args:
        folder: Gets the model folders `teacher` and `student`.
        corpus: A corpus folder.
        pair: The shapes.
        spread: Standard deviation of the teacher's weights. At the usual one a random model says
            nearly the same of every word.
        dropout: Of both.
    """
    import torch

    from lert_ds import model_dir
    from lert_ds.configuration_lert import LertConfig
    from lert_ds.data.shards import read_manifest
    from lert_ds.modeling_lert import LertForPreTraining

    vocabulary_size = read_manifest(corpus).vocabulary_size
    torch.manual_seed(SEED)
    for name, shape in (("teacher", pair.teacher), ("student", pair.student)):
        config = LertConfig(
            vocab_size=vocabulary_size,
            num_hidden_layers=shape.layers,
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate_size,
            initializer_range=spread if name == "teacher" else 0.02,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        model_dir.save(LertForPreTraining(config), corpus, folder / name)


def compare_losses(corpus: Path, steps: int) -> dict[str, Any]:
    """Return how far our losses are from TextBrewer's, both trained in this process."""
    import textbrewer_parity

    from lert_ds.train.engine import join_processes, leave_processes

    pair = PAIRS[PARITY_PAIR]
    batches = list(itertools.islice(batches_of(corpus, pair.batch_size), steps))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_models(folder, corpus, pair, spread=1.0, dropout=0.0)
        join_processes()
        theirs, ours = textbrewer_parity.losses_of_both(
            folder / "teacher", folder / "student", batches,
            textbrewer_configuration(pair), LEARNING_RATE,
        )  # fmt: skip
        leave_processes()
    differences = textbrewer_parity.differences(theirs, ours)
    by_loss = {
        name: [float(f"{of_step[name]:.1e}") for of_step in differences] for name in differences[0]
    }
    return {
        "models": PARITY_PAIR,
        "steps": steps,
        "largest |difference|": {name: max(values) for name, values in by_loss.items()},
        "|difference| of each step": by_loss,
        "TextBrewer's losses in the first step": theirs[0],
        "TextBrewer's losses in the last step": theirs[-1],
    }


def first_instances(corpus: Path, folder: Path) -> Path:
    """Write the first instances of a corpus as a corpus of its own, and return its folder."""
    import numpy as np

    from lert_ds.data.shards import ARRAYS, Corpus, read_manifest, write_manifest, write_shard

    whole = Corpus([corpus])
    kept = [whole[index] for index in range(CACHED_INSTANCES)]
    arrays = {
        name: np.stack(
            [one.tags[name] if name in one.tags else getattr(one, name) for one in kept]
        ).astype(dtype)
        for name, dtype in ARRAYS.items()
    }
    folder.mkdir()
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if (corpus / name).exists():
            shutil.copy(corpus / name, folder / name)
    (folder / "shards").mkdir(exist_ok=True)
    record = write_shard(folder, "first-000", arrays)
    manifest = read_manifest(corpus)
    write_manifest(folder, dataclasses.replace(manifest, shards=[record], instances=len(kept)))
    return folder


def sides_here() -> dict[str, Side]:
    """Return the sides that this processor can run at speed."""
    import torch

    from lert_ds.machine import multiplies_bf16

    has_bf16 = multiplies_bf16(torch.device("cpu"))
    return {name: side for name, side in OURS.items() if has_bf16 or side.precision != "bf16"}


def measure(name: str, corpus: Path, steps: int, turns: int, *, matches: bool) -> dict[str, Any]:
    """Return speed and memory of a pair on every side, and their ratios."""
    sides = sides_here()
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in (*sides, THEIRS)}
    all_steps = WARM_UP_STEPS + steps + 1  # the last one is there to end the one before
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), corpus, PAIRS[name])
        corpus = first_instances(corpus, Path(folder) / "corpus")

        def part(side: str, steps: int) -> dict[str, Any]:
            return run_part(
                "--part", side, "--folder", folder, "--corpus", str(corpus),
                "--pair", name, "--steps", str(steps), *([] if matches else ["--kd"]),
            )  # fmt: skip

        for side, how in sides.items():
            if how.cached:
                part(side, CACHED_INSTANCES // PAIRS[name].batch_size)
        for turn in range(turns):
            for side, results in measured.items():
                results.append(part(side, all_steps))
                print(f"{name}, {turn + 1}/{turns}, {side}: {results[-1]}", file=sys.stderr)
    found: dict[str, Any] = {
        side: {key: round(statistics.median(r[key] for r in results), 3) for key in results[0]}
        for side, results in measured.items()
    }
    for side in sides:
        found[f"{side} / {THEIRS}"] = {
            key: ratios(
                [a[key] / b[key] for a, b in zip(measured[side], measured[THEIRS], strict=True)]
            )
            for key in measured[side][0]
        }
    return {**found, "turns": turns}


def run_part(*arguments: str) -> dict[str, Any]:
    """Run this file on the first core with one thread, and return the JSON of its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = ["taskset", "--cpu-list", "0", sys.executable, __file__, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(values: list[float]) -> dict[str, Any]:
    return {
        "ratio_median": round(statistics.median(values), 3),
        "ratio_range": [round(min(values), 3), round(max(values), 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder")
    parser.add_argument("--steps", type=int, help="measured (10) or compared (20)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pair", choices=PAIRS, help="measure this one alone")
    parser.add_argument("--kd", action="store_true", help="without matches")
    parser.add_argument("--parity", action="store_true", help="compare losses, measure nothing")
    parser.add_argument("--output", type=Path)
    # What this file calls itself with.
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    from lert_ds.data.shards import read_manifest

    corpus = options.corpus.resolve()
    if options.part:
        print(json.dumps(do_part(options, corpus)))
        return
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/distilling.py", *sys.argv[1:]]),
        "machine": description(),
        "setting": SETTING.format(matches="" if options.kd else MATCHES),
    }
    if options.parity:
        steps = str(options.steps or 20)
        result |= run_part("--part", "parity", "--corpus", str(corpus), "--steps", steps)
    else:
        for name in [options.pair] if options.pair else PAIRS:
            length = read_manifest(corpus).length
            key = f"{name}, {PAIRS[name].batch_size} × {length} tokens a step"
            result[key] = measure(
                name, corpus, options.steps or 10, options.turns, matches=not options.kd
            )
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")


def do_part(options: argparse.Namespace, corpus: Path) -> dict[str, Any]:
    """Return what the process that `run_part` started finds."""
    if options.part == "parity":
        return compare_losses(corpus, options.steps)
    pair = PAIRS[options.pair]
    matches = not options.kd
    if options.part == THEIRS:
        return run_textbrewer(options.folder, corpus, pair, options.steps, matches=matches)
    side = OURS[options.part]
    return run_ours(options.folder, corpus, pair, options.steps, side, matches=matches)


if __name__ == "__main__":
    main()
