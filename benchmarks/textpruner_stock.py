"""TextPruner as it comes, for `textpruner_parity.py`, with a transformers that it was made for.

    python textpruner_stock.py FOLDER

    FOLDER/model                 a model folder that `BertForMaskedLM` reads
    FOLDER/batches.safetensors   input_ids, attention_mask, labels, each with the batch's number
    FOLDER/runs.json             what to do: name to mode, TextPruner's keys, masks
    FOLDER/stock.safetensors     written: scores, masks and logits of each run
    FOLDER/stock.json            written: versions, and what failed

Nothing of this project is imported.
"""

import copy
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import textpruner
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

Tensors = dict[str, torch.Tensor]


def read_batches(folder: Path) -> list[Tensors]:
    tensors = load_file(folder / "batches.safetensors")
    batches: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".")
        batches.setdefault(int(number), {})[key] = tensor
    return [batches[number] for number in sorted(batches)]


def logits_of(model: Any, batch: Tensors) -> torch.Tensor:
    """Return the logits at the masked positions of a batch, [masked, vocabulary]."""
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[batch["labels"] != -100]


def run(model: Any, batches: list[Tensors], wanted: dict[str, Any]) -> Tensors:
    """Do what a line of runs.json says and return what came of it."""
    config = textpruner.TransformerPruningConfig(**wanted["config"])
    masks = {key: torch.tensor(wanted[key]) for key in ("head_mask", "ffn_mask") if key in wanted}
    with tempfile.TemporaryDirectory() as scratch:
        general = textpruner.GeneralConfig("cpu", scratch)
        pruner = textpruner.TransformerPruner(model, config, general)
        if wanted.get("copy") == "fp32":
            pruner.model_rep = copy.deepcopy(model)
        if wanted["kind"] == "scores":
            if masks:
                pruner.prune_with_masks(**masks, keep_shape=True)
            score = pruner.get_importance_score
            if config.use_logits:
                score = pruner.get_importance_score_with_logits
            heads, neurons = score(batches)
            return {"heads": heads, "neurons": neurons}
        pruner.prune(batches, **masks, save_model=False)
    found = {"logits": logits_of(model, batches[-1])}
    if not masks:
        found |= {"head_mask": pruner.head_mask, "ffn_mask": pruner.ffn_mask}
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    batches = read_batches(folder)
    found: Tensors = {}
    errors: dict[str, str] = {}
    for name, wanted in json.loads((folder / "runs.json").read_text("utf-8")).items():
        model = BertForMaskedLM.from_pretrained(folder / "model").eval()
        model.config.model_type = "bert"
        try:
            results = run(model, batches, wanted)
        except (RuntimeError, AttributeError, AssertionError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
            continue
        found |= {f"{name}.{key}": value.detach().contiguous() for key, value in results.items()}
    save_file(found, folder / "stock.safetensors")
    versions = {
        "textpruner": textpruner.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    (folder / "stock.json").write_text(json.dumps({"versions": versions, "errors": errors}))


if __name__ == "__main__":
    main()
