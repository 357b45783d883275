"""What pruning costs in quality: scores, repair, iterations, recovery, and from scratch.

    python benchmarks/pruning.py scores --model runs/quickstart/model
        --corpus corpora/quickstart --corpus-valid corpora/quickstart-valid --output scores.json
    python benchmarks/pruning.py curve --model runs/quickstart-student/model …

`scores` prunes to three quarters, half and a quarter of the heads and neurons by every score, with
and without repair, in 1, 4 and 8 iterations, and says the held-out losses: nothing is trained.
`curve` prunes to several sizes, trains each again for `--steps` steps with the unpruned model as
the teacher, exports it to int8, and trains a model of the very same shape from random weights by
the same steps, teacher and data, beside one without any teacher. Everything goes through the
commands that a user calls. `cost` times a batch of every score beside a training step (fp32, AdamW)
of the same model and batches, in turns, by the processor's time. Held-out losses charge a masked
word that a vocabulary lacks with the logarithm of the whole one.
"""

import argparse
import copy
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.data.loader import evaluation_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.shards import Corpus
from lert_ds.edge.folder import GRAPHS
from lert_ds.files import write_json
from lert_ds.machine import description
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.pretraining_objective import LipConfig, PretrainingObjective, masked_logits
from lert_ds.vocabulary_view import in_vocabulary_of
from prune.benchmark.columns import find_columns
from prune.benchmark.quality import UNKNOWN_SHARE, HeldOut
from prune.importance import scoring
from prune.importance.rows import masked_rows
from prune.importance.scoring import ScoringConfig
from prune.prune_config import PruneRun
from prune.run import prune

SCORES = ("textpruner", "textpruner_logits", "gate_gradient", "fisher", "magnitude")
SHARES = (0.75, 0.5, 0.25)
ITERATIONS = (1, 4, 8)
SIZES = ((0.75, 0.75), (0.5, 0.75), (0.5, 0.5), (0.25, 0.25))
"""Of the curve: the share of the heads and neurons, and that of the pieces, which stay."""
SEED = 1
COST_BATCHES, COST_ROUNDS = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["scores", "curve", "cost"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--corpus-valid", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="curve: of each training")
    parser.add_argument("--instances", type=int, default=256, help="scored, repaired by, held out")
    parser.add_argument("--folder", type=Path, help="keep the models here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        rows = []
        parts = {"scores": score_rows, "curve": curve_rows, "cost": cost_rows}
        for row in parts[arguments.part](arguments, folder):
            rows.append(row)
            print(json.dumps(row), flush=True)
            result = {
                "machine": description(("torch", "transformers")),
                "command": " ".join(["python", "benchmarks/pruning.py", arguments.part]),
                "steps": arguments.steps if arguments.part == "curve" else None,
                "instances": arguments.instances,
                "rows": rows,
            }
            write_json(arguments.output, result)


def score_rows(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the held-out losses of every score, size, and number of iterations."""
    cases = [(score, share, 1) for share, score in itertools.product(SHARES, SCORES)]
    cases += [
        (score, share, count)
        for share, score, count in itertools.product(
            SHARES[1:], ("textpruner", "fisher"), ITERATIONS[1:]
        )
    ]
    for score, share, iterations in cases:
        found = {
            name: prune_to(
                arguments, folder / "pruned", share, score=score, iterations=iterations, repair=on
            )
            for name, on in (("plain", False), ("repaired", True))
        }
        yield {
            "score": score,
            "share": share,
            "n_iters": iterations,
            "original": loss_of(found["plain"], "original"),
            "without_repair": loss_of(found["plain"], "cut"),
            "with_repair": loss_of(found["repaired"], "repaired"),
            "parameters": found["plain"]["parameters"],
        }


def curve_rows(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield sizes and held-out losses of models pruned, recovered, quantized, and from scratch."""
    pieces = model_dir.read_config(arguments.model).vocab_size
    for share, vocabulary in SIZES:
        here = folder / f"{share}-{vocabulary}"
        summary = prune_to(
            arguments,
            here / "pruned",
            share,
            score="fisher",
            iterations=4,
            repair=True,
            size=int(vocabulary * pieces),
        )
        pruned = here / "pruned" / "model"
        recovered = recover(arguments, pruned, here / "recovered")
        scratch = here / "scratch" / "start"
        forget(pruned, scratch)
        from_scratch = recover(
            arguments, scratch, here / "scratch" / "taught", f"teacher={arguments.model}"
        )
        alone = recover(arguments, scratch, here / "scratch" / "alone", "objective=pretraining")
        edge = here / "edge"
        call("export", "export-int8", f"model={recovered}", f"output={edge}", "overwrite=true")
        models = {
            "recovered": recovered,
            "edge": edge,
            "scratch with teacher": from_scratch,
            "scratch alone": alone,
        }
        yield {
            "share": share,
            "vocabulary": summary["pieces"]["after"],
            "parameters": summary["parameters"]["after"],
            "of_original": summary["parameters"]["after"] / summary["parameters"]["before"],
            "original": loss_of(summary, "original"),
            "cut": loss_of(summary, "cut"),
            "repaired": loss_of(summary, "repaired"),
            **losses(arguments, models),
            "shared words": on_shared_words(arguments, recovered),
            "bytes_int8": (edge / GRAPHS["int8"]).stat().st_size,
        }


def cost_rows(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the time of a batch of each score over that of a training step."""
    torch.set_num_threads(1)
    model, _ = model_dir.load(arguments.model)
    corpus = Corpus([Path(name) for name in arguments.corpus])
    batches = list(itertools.islice(evaluation_batches(corpus, MaskingConfig(), 16), COST_BATCHES))
    tasks = model.config.tasks
    trained = PretrainingObjective(copy.deepcopy(model), LipConfig(tasks=tasks), 1000)
    optimizer = torch.optim.AdamW(trained.parameters(), 1e-4)
    trained.train()

    def train() -> None:
        for batch in batches:
            trained(batch, step=500).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def score(method: str) -> None:
        settings = parse(ScoringConfig, {"method": method}, "benchmark")
        scoring.score(model, batches, settings, masked_rows(tasks))

    def seconds(work: Callable[[], None]) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    train()
    ratios: dict[str, list[float]] = {method: [] for method in SCORES}
    for _ in range(COST_ROUNDS):
        for method, found in ratios.items():
            step = seconds(train)
            found.append(seconds(lambda method=method: score(method)) / step)  # type: ignore[misc]
    for method, found in ratios.items():
        yield {
            "score": method,
            "of_a_training_step": statistics.median(found),
            "range": [min(found), max(found)],
        }


def prune_to(
    arguments: argparse.Namespace, output: Path, share: float, *,
    score: str, iterations: int, repair: bool, size: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the summary of a pruning to a share of the heads and neurons."""
    shape = model_dir.read_config(arguments.model)
    tree: dict[str, Any] = {
        "model": str(arguments.model),
        "output": str(output),
        "overwrite": True,
        "corpus": arguments.corpus,
        "corpus_valid": arguments.corpus_valid,
        "held_out_instances": arguments.instances,
        "scoring": {"method": score, "instances": arguments.instances},
        "repair": {"enabled": repair, "instances": arguments.instances},
        "pruning": {"n_iters": iterations},
    }
    if share < 1:
        tree["pruning"] |= {
            "target_num_of_heads": max(1, share * shape.num_attention_heads),
            "target_ffn_size": int(share * shape.intermediate_size),
            "head_even_masking": False,
            "ffn_even_masking": False,
        }
    if size is not None:
        tree["vocabulary"] = {"size": size}
    return prune(parse(PruneRun, tree, "benchmark"))


def loss_of(summary: dict[str, Any], stage: str) -> float | None:
    held_out = summary["held_out"].get(stage)
    return None if held_out is None else held_out["mlm/loss"]


def recover(arguments: argparse.Namespace, model: Path, output: Path, *changes: str) -> Path:
    """Train a model again and return its folder."""
    warm_up = max(1, arguments.steps // 20)
    call(
        "recover", "recover-quickstart", f"model={model}", f"output={output}",
        f"corpus={json.dumps(arguments.corpus)}", f"corpus_valid={arguments.corpus_valid}",
        f"train.steps={arguments.steps}", f"train.evaluate_every={arguments.steps}",
        "deepspeed=ds_configs/cpu_bf16.json", "train.learning_rate=2e-3",
        f"schedule.warmup_steps={warm_up}", "overwrite=true", *changes,
    )  # fmt: skip
    return output / "model"


def forget(model: Path, output: Path) -> None:
    """Write a model of the same shape and vocabulary with random weights."""
    torch.manual_seed(SEED)
    fresh = LertForPreTraining(model_dir.read_config(model))
    model_dir.save(fresh, model, output)


def losses(arguments: argparse.Namespace, models: dict[str, Path]) -> dict[str, float]:
    """Return the held-out MLM loss of each graph and model."""
    held_out = HeldOut([Path(arguments.corpus_valid)], arguments.instances)
    columns = find_columns([str(path) for path in models.values()], list(models), "fp32")
    found = {column.name: held_out.evaluate(column) for column in columns}
    missing = found["recovered"][UNKNOWN_SHARE]
    return {"missing": missing} | {name: one["mlm/loss"] for name, one in found.items()}


@torch.no_grad()
def on_shared_words(arguments: argparse.Namespace, smaller: Path) -> dict[str, float]:
    """Return the losses at the masked words that both vocabularies have, and the original's else.

    The charge for a missing word may be less than what the original loses there: see both.
    """
    corpus = Corpus([Path(arguments.corpus_valid)])
    view = in_vocabulary_of(corpus, smaller)
    models = [model_dir.load(folder)[0].eval() for folder in (arguments.model, smaller)]
    pairs = zip(
        evaluation_batches(corpus, MaskingConfig(), 16),
        evaluation_batches(view, MaskingConfig(), 16, with_missing=True),
        strict=True,
    )
    sums, counts = [0.0, 0.0, 0.0], [0, 0, 0]
    for both in itertools.islice(pairs, -(-arguments.instances // 16)):
        known = both[1].labels != view.manifest.special_ids["unk"]
        found = [
            functional.cross_entropy(
                masked_logits(model, batch)["mlm"], batch.labels, reduction="none"
            )
            for model, batch in zip(models, both, strict=True)
        ]
        parts = (found[0][known], found[1][known], found[0][~known])
        for place, part in enumerate(parts):
            sums[place] += float(part.sum())
            counts[place] += len(part)
    names = ("original", "recovered", "original, at the missing ones")
    return {name: sums[n] / max(1, counts[n]) for n, name in enumerate(names)}


def call(*words: str) -> None:
    """Run a command of lert-ds in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lert_ds", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    print(f"{words[0]} {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
