"""What a student learns from its teacher in int8, and from answers that were kept.

    python benchmarks/teacher_options.py --teacher MODEL --corpus CORPUS --output …json

One student (2 layers of 64, from its teacher's weights), one teacher, the same batches and dropout;
`lert-ds distill` several times that differ in nothing but the teacher's precision or
`teacher_cache`. Told is what each student reaches on the held-out part of the corpus, beside a
student whose only difference is its seed: a difference smaller than that is none. The temperature
is MiniRBT's 8, at which most of a distribution lies outside of its largest logits, and KD is all
that is learnt from: beside the loss on the labels its gradient, over 8, would hardly count.

Before that, without any training (`--gradients` stops there): how far the gradient of the KL on a
student's logits is from that of the whole logits in fp32, by temperature. The student there is half
its teacher, with noise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.answers import from_bytes, keep_top, to_bytes, top_loss
from distill.int8_teacher import to_int8
from distill.losses import kd_kl_loss
from lert_ds import model_dir
from lert_ds.corpora import open_folders
from lert_ds.machine import description
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.pretraining_objective import masked_logits

BIN = Path(sys.executable).parent
FRESH, ONE_MASK = "masked anew each epoch", "masks of one epoch"
CASES: dict[str, list[str]] = {
    f"fp32, {FRESH}": ["teacher_precision=fp32"],
    f"int8, {FRESH}": ["teacher_precision=int8"],
    f"fp32, {ONE_MASK}, exact": ["teacher_cache", "teacher_cache_logits=exact"],
    f"fp32, {ONE_MASK}, bytes": ["teacher_cache", "teacher_cache_logits=bytes"],
    **{
        f"fp32, {ONE_MASK}, the {k} largest": [
            "teacher_cache", "teacher_cache_logits=top", f"teacher_cache_top_k={k}",
        ]
        for k in (1024, 64)
    },
    f"no teacher, {FRESH}": ["labels_only=true", "distillation.hard_label_weight=1"],
}  # fmt: skip
METRICS = ("mlm/loss", "mlm/accuracy", "mlm/kl", "mlm/agreement")


def distil(options: argparse.Namespace, folder: Path, case: list[str], seed: int) -> dict[str, Any]:
    """Return what a student reaches, and the seconds that its training took."""
    keys = [f"teacher_cache={folder / 'cache'}" if key == "teacher_cache" else key for key in case]
    command = [
        "taskset", "--cpu-list", str(options.core), str(BIN / "lert-ds"), "distill",
        "distill-quickstart", f"teacher={options.teacher.resolve()}",
        f"corpus={options.corpus.resolve()}", f"output={folder / 'run'}", "overwrite=true",
        "deepspeed=ds_configs/zero0_fp32.json", "teacher_precision=fp32", "lip.tasks=[]",
        "distillation={temperature=8, intermediate_matches=[]}",
        f"train.steps={options.steps}", "train.batch_size=16", "train.micro_batch_size=16",
        f"train.evaluate_every={options.steps}", "train.save_every=0", "train.data_workers=0",
        f"seed={seed}", *keys,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    summary = json.loads((folder / "run/summary.json").read_text("utf-8"))
    return {name: summary["valid"][name] for name in METRICS if name in summary["valid"]}


@torch.no_grad()
def gradients(teacher: Path, corpus: Path) -> dict[str, Any]:
    """Return |g - whole g| / |whole g| and their cosine, by temperature and way of keeping."""
    model, _ = model_dir.load(teacher, LertForPreTraining)
    batch = next(iter(open_folders([corpus], []).evaluation(64)))
    logits = masked_logits(model.eval(), batch)["mlm"]
    to_int8(model)
    rounded = masked_logits(model, batch)["mlm"]
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    student = (logits + logits.mean(0)) / 2 + 0.3 * logits.std() * noise

    def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = student.clone().requires_grad_()
            (found,) = torch.autograd.grad(loss(leaf), leaf)
        return found

    found: dict[str, Any] = {"rows and classes": list(logits.shape)}
    for temperature in (1.0, 2.0, 4.0, 8.0):
        plain = partial(kd_kl_loss, logits_T=logits, temperature=temperature)
        whole = gradient(plain).double()
        ways = {
            "int8": partial(kd_kl_loss, logits_T=rounded, temperature=temperature),
            "bytes": partial(
                kd_kl_loss, logits_T=from_bytes(*to_bytes(logits)), temperature=temperature
            ),
            **{
                f"the {k} largest": partial(
                    top_loss, teacher=keep_top(logits, k, temperature), temperature=temperature,
                    squared=False, less_entropy=True,
                )
                for k in (16, 64, 256, 1024)
            },
        }  # fmt: skip
        for way, loss in ways.items():
            one = gradient(loss).double()
            found.setdefault(f"temperature {temperature:g}", {})[way] = {
                "error": round(float((one - whole).norm() / whole.norm()), 4),
                "cosine": round(float((one * whole).sum() / one.norm() / whole.norm()), 4),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="a model folder")
    parser.add_argument("--corpus", type=Path, required=True, help="with a held-out part")
    parser.add_argument("--steps", type=int, default=600, help="of 16 instances")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--core", type=int, default=0, help="to run on")
    parser.add_argument("--gradients", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/teacher_options.py", *sys.argv[1:]]),
        "machine": description(),
    }
    torch.set_num_threads(1)
    found["gradients"] = gradients(options.teacher, options.corpus)
    for name, case in () if options.gradients else CASES.items():
        students = []
        for seed in range(1, options.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                students.append(distil(options, Path(folder), case, seed))
        found[name] = {
            metric: {
                "mean": round(statistics.mean(student[metric] for student in students), 4),
                "seeds": [round(student[metric], 4) for student in students],
            }
            for metric in students[0]
        }
        print(name, found[name], file=sys.stderr, flush=True)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
