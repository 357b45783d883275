"""How far our TextPruner is from TextPruner on the transformers it was made for.

A second environment, made where it is missing, has transformers 4.57 and runs TextPruner as it
comes (`textpruner_stock.py`) on the same weights and masked batches, MLM alone. Ours run here:
scores, the masks chosen by them, and the logits of what is left. In fp32, one thread. With logits
for labels and nothing pruned, scores are the rounding errors of a copy of the model: between one in
half precision and one in fp32 there is nothing to agree on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import evaluation_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.shards import Corpus
from lert_ds.files import write_json
from lert_ds.machine import description
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import masked_logits
from prune.importance.pruner import TransformerPruner, importance
from prune.importance.textpruner_model import TransformerPruningConfig

BATCHES, SIZE = 16, 16
STOCK = Path(__file__).with_name("textpruner_stock.py")
# torch first and exactly: any looser demand brings gigabytes of CUDA to a machine without it.
INSTALLS = (
    ("torch==2.13.0",),
    ("transformers==4.57.*", "sentencepiece", "protobuf", "safetensors", "numpy"),
    ("--no-deps", "textpruner==1.1.post2"),  # its own requirements cannot be met
)
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="default: LERT-small's shape, untrained")
    parser.add_argument("--environment", type=Path, default=Path("build/textpruner-parity"))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = Corpus([arguments.corpus])
    batches = list(evaluation_batches(corpus, MaskingConfig(), SIZE))[:BATCHES]
    python = environment(arguments.environment)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = arguments.model or untrained(corpus, arguments.corpus, folder / "untrained")
        (folder / "model").symlink_to(source.absolute())
        model, _ = model_dir.load(folder / "model")
        runs = make_runs(model.config)
        write_json(folder / "runs.json", runs)
        write_batches(folder, batches)
        quiet = {**os.environ, "TQDM_DISABLE": "1"}
        subprocess.run([python, STOCK, folder], check=True, env=quiet)
        theirs = load_file(folder / "stock.safetensors")
        facts = json.loads((folder / "stock.json").read_text("utf-8"))
    rows = {}
    for run_name, run in runs.items():
        if run_name in facts["errors"]:
            rows[run_name] = {"stock": facts["errors"][run_name]}
            continue
        ours = run_ours(model.eval(), batches, run)
        stock = {key: theirs[f"{run_name}.{key}"] for key in ours}
        rows[run_name] = {"config": run["config"], **differences(ours, stock)}
        print(run_name, rows[run_name])
    write_json(
        arguments.output,
        {
            "command": " ".join(["python", "benchmarks/textpruner_parity.py", *sys.argv[1:]]),
            "machine": description(),
            "versions": {
                "stock": facts["versions"],
                "ours": {"transformers": transformers.__version__, "torch": torch.__version__},
            },
            "model": shape_in_words(model.config),
            "batches": f"{BATCHES} of {SIZE} instances, MLM alone",
            "runs": rows,
        },
    )


def environment(folder: Path) -> Path:
    """Return the Python of the second environment, which is made where it is missing."""
    python = folder.absolute() / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for packages in INSTALLS:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "ready").touch()
    return python


def untrained(corpus: Corpus, tokenizer_folder: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=corpus.manifest.vocabulary_size, hidden_size=256, num_hidden_layers=12,
        num_attention_heads=4, intermediate_size=1024,
    )  # fmt: skip
    model_dir.save(LertForPreTraining(config), tokenizer_folder, folder)
    return folder


def shape_in_words(config: LertConfig) -> str:
    return (
        f"{config.num_hidden_layers} layers x {config.hidden_size}, "
        f"{config.num_attention_heads} heads, feed-forward {config.intermediate_size}, "
        f"vocabulary {config.vocab_size}"
    )


def make_runs(config: LertConfig) -> dict[str, Run]:
    """Return what both sides do, by name; half of the heads and neurons go."""
    layers, heads, neurons = (
        config.num_hidden_layers, config.num_attention_heads, config.intermediate_size,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def even_mask(units: int) -> list[list[int]]:
        orders = (torch.randperm(units, generator=generator) for _ in range(layers))
        return [(order < units // 2).int().tolist() for order in orders]

    masks = {"head_mask": even_mask(heads), "ffn_mask": even_mask(neurons)}
    target = {
        "pruning_method": "iterative",
        "target_num_of_heads": heads // 2,
        "target_ffn_size": neurons // 2,
    }
    uneven = {"head_even_masking": False, "ffn_even_masking": False}
    logits: Run = {"kind": "scores", "config": {"use_logits": True}}
    return {
        "scores": {"kind": "scores", "config": {}},
        "scores, uneven": {"kind": "scores", "config": {"ffn_even_masking": False}},
        "scores of a model with masks, logits of the whole in fp32": {
            **logits, **masks, "copy": "fp32",
        },
        "scores, logits in fp32": {**logits, "copy": "fp32"},
        "scores, logits in half, ours in fp32": logits,
        "masks": {"kind": "prune", "config": {}, **masks},
        "iterative, 1": {"kind": "prune", "config": {**target, "n_iters": 1}},
        "iterative, 4": {"kind": "prune", "config": {**target, "n_iters": 4}},
        "iterative, 4, uneven": {
            "kind": "prune", "config": {**target, "n_iters": 4, "multiple_of": 16, **uneven},
        },
        "iterative, 2, head-first": {
            "kind": "prune", "config": {**target, "n_iters": 2, "pruning_order": "head-first"},
        },
    }  # fmt: skip


def write_batches(folder: Path, batches: list[Batch]) -> None:
    """Write batches as a `BertForMaskedLM` takes them, -100 where nothing is masked."""
    tensors = {}
    for number, batch in enumerate(batches):
        labels = torch.full_like(batch.input_ids, -100)
        labels.view(-1)[batch.masked_positions] = batch.labels
        real = batch.attention_mask
        tensors |= {
            f"{number}.input_ids": batch.input_ids,
            f"{number}.attention_mask": torch.ones_like(labels) if real is None else real.long(),
            f"{number}.labels": labels,
        }
    save_file(tensors, folder / "batches.safetensors")


def run_ours(model: LertForPreTraining, batches: list[Batch], run: Run) -> dict[str, Tensor]:
    """Do with ours what a line of the runs says and return what came of it."""
    config = TransformerPruningConfig(**run["config"])
    masks = {key: torch.tensor(run[key]) for key in ("head_mask", "ffn_mask") if key in run}
    if run["kind"] == "scores":
        scored = model
        if masks:
            scored = TransformerPruner(model).prune(**masks, keep_shape=True)
        found = importance(
            scored, batches, use_logits=config.use_logits, reference=model,
            ffn_even_masking=config.ffn_even_masking,
        )  # fmt: skip
        return {"heads": torch.stack(found.heads), "neurons": torch.stack(found.neurons)}
    pruner = TransformerPruner(model, config)
    pruned = pruner.prune(batches, **masks)
    with torch.no_grad():
        results = {"logits": masked_logits(pruned, batches[-1])["mlm"]}
    if not masks:
        assert pruner.head_mask is not None
        assert pruner.ffn_mask is not None
        results |= {"head_mask": pruner.head_mask, "ffn_mask": pruner.ffn_mask}
    return results


def differences(ours: Mapping[str, Tensor], stock: Mapping[str, Tensor]) -> Run:
    """Return how far they are apart, scores and logits relative to stock's largest."""
    found: Run = {}
    for key, theirs in stock.items():
        if key.endswith("mask"):
            found[f"{key}: equal"] = torch.equal(ours[key], theirs)
            continue
        if ours[key].shape != theirs.shape:
            found[key] = f"{list(ours[key].shape)} against {list(theirs.shape)}"
            continue
        largest = theirs.abs().max().item()
        apart = (ours[key] - theirs).abs().max().item()
        found[key] = {
            "largest": rounded(largest),
            "largest |difference|": rounded(apart),
            "relative": rounded(apart / largest),
        }
    return found


def rounded(value: float) -> float:
    return float(f"{value:.2g}")


if __name__ == "__main__":
    main()
