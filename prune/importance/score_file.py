"""Scores in a file, and whether they are still those of a model and its data.

    scores.safetensors
      heads.0 neurons.0 heads.1 …     float32 [units] a layer
      metadata                        format, method, examples, fingerprint

A fingerprint is a hash of all that scores depend on. Scores of another fingerprint are not read but
made again, so a file is never mistaken for that of another model.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from lert_ds.data.shards import MANIFEST
from lert_ds.distributed import is_main, sum_over_ranks, world_size
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of, write_whole
from prune.importance.scores import Scores

FORMAT = "lert-ds scores 1"
NOT_OF_THE_MODEL = {"_name_or_path", "architectures", "auto_map", "dtype", "transformers_version"}
"""Keys of a configuration that change nothing of what its model computes."""

log = logging.getLogger(__name__)


def fingerprint(
    model: PreTrainedModel, corpora: Iterable[Path], settings: Mapping[str, Any]
) -> str:
    """Return a hash, in hexadecimal digits, of everything that decides scores.

    Args:
        model: Of a class of `lert_ds.modeling_lert`: its configuration and every weight count.
        corpora: Corpus folders, in the order in which they are read: a manifest has the hash of
            every shard.
        settings: Plain JSON values: the method, which instances, how they are masked, ….
    """
    config = {key: v for key, v in model.config.to_dict().items() if key not in NOT_OF_THE_MODEL}
    facts = [config, [sha256_of(folder / MANIFEST) for folder in corpora], settings]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)} ".encode())
        plain = weight.detach().cpu().contiguous()
        digest.update(plain.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write(path: Path, scores: Scores, mark: str) -> None:
    """Write `scores`, made where the fingerprint was `mark`, to the file `path`, whole."""
    tensors = {f"heads.{number}": values for number, values in enumerate(scores.heads)}
    tensors |= {f"neurons.{number}": values for number, values in enumerate(scores.neurons)}
    # Copies: parts of one storage would be refused.
    tensors = {name: values.clone() for name, values in tensors.items()}
    facts = {"method": scores.method, "examples": str(scores.examples)}
    content = save(tensors, {"format": FORMAT, "fingerprint": mark, **facts})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))


def read(path: Path, mark: str) -> Scores | None:
    """Return the scores in `path`; None where it is not there or has another fingerprint.

    Raises:
        ModelError: it is no file of scores, or damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["format"] != FORMAT:
            raise ValueError(facts["format"])
        layers = range(len(tensors) // 2)
        scores = Scores(
            method=facts["method"],
            heads=tuple(tensors[f"heads.{number}"] for number in layers),
            neurons=tuple(tensors[f"neurons.{number}"] for number in layers),
            examples=int(facts["examples"]),
        )
        known = facts["fingerprint"] == mark
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: no file of scores ({error}); delete it or name another"
        ) from error
    if not known:
        log.info("%s: scores of another model, corpus or setting; made again", path)
        return None
    return scores


def reuse(path: Path, mark: str, make: Callable[[], Scores], device: torch.device) -> Scores:
    """Return the scores in `path` where their fingerprint is `mark`; else make and write them.

    Either all ranks read them or all make them: a rank may be on a host without the file.

    Args:
        path: Written by the main process.
        mark: The fingerprint.
        make: Returns the scores; called by every rank or by none.
        device: One that the process group can add up on.

    Raises:
        ModelError: the file is no file of scores, or damaged.
    """
    scores = read(path, mark)
    found = sum_over_ranks(torch.tensor(float(scores is not None), device=device))
    if scores is not None and int(found) == world_size():
        log.info("%s: these scores are reused", path)
        return scores
    scores = make()
    if is_main():
        write(path, scores, mark)
    return scores
