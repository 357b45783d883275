"""Where a model comes from: a folder or hub name to its configuration and weight files, checked."""

import dataclasses
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError

from lert_ds import tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ModelError

CONFIG = "config.json"
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# Without what the classes of transformers write for themselves, and what `save` writes anew.
_FACTS = {field.name for field in dataclasses.fields(LertConfig)} - {
    "architectures",
    "dtype",
    "transformers_version",
}

log = logging.getLogger(__name__)


def resolve(source: str | Path) -> Path:
    """Return the local folder of `source`: itself, or the download of a name on the hub.

    Raises:
        ModelError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{source}: this is a file; name the model folder that holds it")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(source)):
        raise ModelError(f"{source}: there is no such model folder")
    patterns = [
        CONFIG,
        *tokenizer_files.NAMES,
        SAFE_WEIGHTS[0],
        SAFE_WEIGHTS[1],
        "model-*.safetensors",
    ]
    try:
        found = Path(huggingface_hub.snapshot_download(str(source), allow_patterns=patterns))
        if not any((found / name).is_file() for name in SAFE_WEIGHTS):
            patterns += [*PICKLED_WEIGHTS, "pytorch_model-*.bin"]
            found = Path(huggingface_hub.snapshot_download(str(source), allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{source}: no folder of this name is here, and the Hugging Face hub gives no model of "
            f"this name ({reason[:200]}); mend the path, or download the model and name its folder"
        ) from error
    return found


def read_config(source: str | Path, **changes: Any) -> LertConfig:
    """Return the configuration of a LERT or BERT as a `LertConfig`, with `changes` of its keys.

    Raises:
        ModelError: no config.json, or not one of a BERT.
    """
    folder = resolve(source)
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG}, so it is no model folder; name one that has it")
    return read_config_file(path, **changes)


def read_config_file(path: Path, **changes: Any) -> LertConfig:
    """Return what `read_config` does of a file: Google's and LERT's own have other names.

    Raises:
        ModelError: it is not one of a BERT.
    """
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error}); copy or download it again") from error
    tree = tree if isinstance(tree, dict) else {}
    # BERT's own configurations, Google's, name no type.
    kind = tree.get("model_type", "bert" if "type_vocab_size" in tree else None)
    if kind not in ("bert", "lert"):
        raise ModelError(f"{path}: model_type is {kind!r}; a bert or lert model is needed here")
    if (position := tree.get("position_embedding_type", "absolute")) != "absolute":
        raise ModelError(f"{path}: position_embedding_type is {position!r}; LERT's are absolute")
    # Facts alone: from other keys transformers would take other files, kernels of the hub, code.
    tree = {key: value for key, value in tree.items() if key in _FACTS}
    try:
        return LertConfig(**{**tree, **changes})
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ModelError(f"{path}: {reason}; correct it or make the model again") from error


def find_weights(folder: Path) -> str:
    """Return the name of the file, or of the index of the files, that holds a folder's weights.

    Raises:
        ModelError: there is none.
    """
    for name in (*SAFE_WEIGHTS, *PICKLED_WEIGHTS):
        if (folder / name).is_file():
            if name in PICKLED_WEIGHTS:
                log.warning("%s: no safetensors; reading the tensors of %s", folder, name)
            return name
    raise ModelError(
        f"{folder}: a model folder without weights (no {SAFE_WEIGHTS[0]}, "
        f"no {PICKLED_WEIGHTS[0]}); copy or download it again"
    )


def check_tokenizer(source: str | Path, sha256: str) -> None:
    """Hold the tokenizer of a model to that of a corpus, whose vocab.txt has the hash `sha256`.

    Raises:
        ModelError: they differ, so the ids of the corpus mean other pieces to the model.
    """
    folder = resolve(source)
    pieces = "".join(f"{piece}\n" for piece in tokenizer_files.pieces(tokenizer_files.load(folder)))
    contents = [pieces.encode("utf-8")]
    if (vocabulary := folder / tokenizer_files.VOCABULARY).is_file():
        contents.append(vocabulary.read_bytes())
    if all(hashlib.sha256(content).hexdigest() != sha256 for content in contents):
        raise ModelError(
            f"{source}: its tokenizer differs from that of the corpus; prepare the corpus with "
            f"tokenizer = {str(source)!r}"
        )
