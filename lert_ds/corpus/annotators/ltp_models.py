"""LTP's models, neural and perceptron, from a folder: sentences to words, tags and parses.

The one home of `ltp`. Written for ltp 4.2.14 on transformers 5 and huggingface_hub 2, which its
own loader does not know: it asks the hub with arguments that are gone, and its tokenizer for a
method that is gone. It also goes on where weights are missing from the file; here that is an error.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lert_ds.corpus.text import is_blank
from lert_ds.errors import ModelError, UserError
from lert_ds.files import inside

_CONFIG, _WEIGHTS = "config.json", "pytorch_model.bin"
_LONGEST_INPUT = 512
"""Pieces, [CLS] and [SEP] included: LTP cuts there itself, whatever the model can take."""
_TARGET = re.compile(
    # What the config may make: LTP's own parts, for it may come from anywhere.
    r"ltp_core\.models\.(?:ltp_model|processor|utils|components\.[a-z_]+)\."
    r"(?:[A-Z][A-Za-z]*|load_transformers)"
)


_CODE_KEYS = frozenset(
    {"auto_map", "attn_implementation", "experts_implementation", "quantization_config"}
)
"""What transformers would take code from, the folder's or the hub's."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A sentence as LTP sees it: its words, and for each task it offers one value a word."""

    words: list[str]
    pos: list[str] | None
    ner: list[str] | None
    heads: list[int] | None
    """The word (from 1) that each word depends on; 0 for a root."""
    relations: list[str] | None


class LtpModel(Protocol):
    """What neural and perceptron models have in common."""

    longest: int
    """Tokens of a sentence at most."""

    def count_tokens(self, sentences: Sequence[str]) -> list[int]:
        """Return the tokens of each sentence: what the time and memory of a batch depend on."""
        ...

    def parse(self, sentences: Sequence[str]) -> list[Parsed]:
        """Return each sentence parsed; none may be without tokens or longer than `longest`."""
        ...


def load_ltp(model: str, device: str) -> LtpModel:
    """Return the model of a local folder or hub name (`name@revision` for one of its versions).

    Args:
        model: folder with config.json, or hub name.
        device: auto, cpu, cuda or cuda:N; perceptrons run on the CPU always.

    Raises:
        UserError: the package, the folder, its weights, the network or the GPU is missing.
    """
    try:
        import ltp  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"kind = 'ltp' needs the package ltp ({error}): pip install lert-ds[ltp]"
        ) from error
    folder = _find_folder(model)
    config = _read_config(folder)
    if config["nerual"]:  # LTP's own spelling
        return _NeuralModel(folder, config, _choose_device(device))
    return _PerceptronModel(folder, config)


def _find_folder(model: str) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"model = {model}: it is a file; name LTP's folder or a hub name")
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    # The hub raises a family of its own, httpx's and OSError: all mean that there is no model.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"model = {model}: there is no such folder, and it cannot be had from the hub "
            f"({reason}); where there is a network run `hf download {name} --local-dir ltp-model`, "
            "then name that folder here"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no {_CONFIG}; it is not a folder of LTP's") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}); download the model again") from error
    wanted = (
        "nerual",
        "tasks" if not (isinstance(config, dict) and config.get("nerual")) else "model",
    )
    if not isinstance(config, dict) or any(key not in config for key in wanted):
        raise ModelError(f"{path}: no {' and '.join(wanted)}; it is not a model of LTP 4.2")
    return config


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device = {name}: torch sees {torch.cuda.device_count()} GPUs; use auto or cpu"
        )
    return device


class _NeuralModel:
    """A transformer with heads for words, parts of speech, entities and dependencies."""

    def __init__(self, folder: Path, config: dict[str, Any], device: torch.device) -> None:
        from ltp.nerual import LTP

        for key, value in _entries(config["model"]):
            if key == "_ltp_target_" and _TARGET.fullmatch(str(value)) is None:
                raise ModelError(f"{folder / _CONFIG}: {value} is no part of LTP's models")
            if key in _CODE_KEYS:
                raise ModelError(f"{folder / _CONFIG}: {key} is refused: it may run code")
        model = LTP(config=config)
        _load_weights(model.model, folder / _WEIGHTS)
        if "cws" not in model.supported_tasks:
            raise ModelError(f"{folder}: the model does not segment words (no cws)")
        backbone = model.model.backbone.config
        self._tokenizer = _load_tokenizer(folder, backbone)
        model.tokenizer = _BatchEncoder(self._tokenizer)
        self._model = model.to(device).eval()
        self._tasks = ["cws", *(t for t in ("pos", "ner", "dep") if t in model.supported_tasks)]
        self.longest = min(_LONGEST_INPUT, backbone.max_position_embeddings) - 2

    def count_tokens(self, sentences: Sequence[str]) -> list[int]:
        encoded = self._tokenizer(list(sentences), add_special_tokens=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def parse(self, sentences: Sequence[str]) -> list[Parsed]:
        result = self._model.pipeline(list(sentences), tasks=self._tasks, raw_format=True)
        parses = result["dep"] if "dep" in self._tasks else None
        return [
            Parsed(
                words=words,
                pos=result["pos"][place] if "pos" in self._tasks else None,
                ner=_whole_entities(result["ner"][place]) if "ner" in self._tasks else None,
                heads=parses[place]["head"] if parses else None,
                relations=parses[place]["label"] if parses else None,
            )
            for place, words in enumerate(result["cws"])
        ]


class _PerceptronModel:
    """Averaged perceptrons for words, parts of speech and entities; there is no parser."""

    longest = 100_000

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from ltp.legacy import LTP
        from ltp_extension.perceptron import CharacterType

        files = {task: inside(folder, name) for task, name in config["tasks"].items()}
        if "cws" not in files:
            raise ModelError(f"{folder / _CONFIG}: the model does not segment words (no cws)")
        for path in files.values():
            if not path.is_file():
                raise ModelError(f"{path}: there is no such file; download the model again")
        try:
            model = LTP(**{task: str(path) for task, path in files.items()})
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(f"{folder}: not perceptrons of LTP's ({error})") from error
        # Without these it cuts English words and numbers into characters; with them into two parts
        # at most, where it has not seen the word.
        for kind in (CharacterType.Roman, CharacterType.Digit):
            model.enable_type_concat(kind, kind)
        self._model = model
        self._tasks = [task for task in ("cws", "pos", "ner") if task in files]

    def count_tokens(self, sentences: Sequence[str]) -> list[int]:
        return [0 if is_blank(text) else len(text) for text in sentences]

    def parse(self, sentences: Sequence[str]) -> list[Parsed]:
        result = self._model.pipeline(
            list(sentences), tasks=self._tasks, raw_format=True, parallelism=False
        )
        return [
            Parsed(
                words=words,
                pos=result["pos"][place] if "pos" in self._tasks else None,
                ner=_whole_entities(result["ner"][place]) if "ner" in self._tasks else None,
                heads=None,
                relations=None,
            )
            for place, words in enumerate(result["cws"])
        ]


class _BatchEncoder:
    """The one method that LTP asks of its tokenizer and transformers 5 dropped."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def batch_encode_plus(self, inputs: list[str], **options: Any) -> Any:
        return self._tokenizer(inputs, **options)


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, however deep."""
    if isinstance(tree, list):
        for branch in tree:
            yield from _entries(branch)
    if isinstance(tree, dict):
        for key, branch in tree.items():
            yield key, branch
            yield from _entries(branch)


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; download the model again")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        missing, _ = module.load_state_dict(weights, strict=False)
    # Whatever a damaged pickle raises (zip, pickle, type errors), the remedy is the same.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{path}: cannot be loaded ({reason}); download it again") from error
    # Buffers that older versions of transformers stored or did not.
    lost = [name for name in missing if not name.endswith(("position_ids", "token_type_ids"))]
    if lost:
        raise ModelError(
            f"{path}: weights are missing ({len(lost)}, the first is {lost[0]}); "
            "download the model again"
        )


def _load_tokenizer(folder: Path, backbone: Any) -> Any:
    from transformers import AutoTokenizer

    # Without either, transformers 5 silently makes a tokenizer that knows five special pieces.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise ModelError(f"{folder}: no tokenizer.json and no vocab.txt; download the model again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder),
            config=backbone,
            use_fast=True,
            local_files_only=True,
            trust_remote_code=False,  # None would ask at the terminal
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{folder}: its tokenizer cannot be loaded ({reason})") from error
    if len(tokenizer) > backbone.vocab_size:
        raise ModelError(
            f"{folder}: {len(tokenizer)} pieces in the tokenizer, {backbone.vocab_size} in the "
            "model; they are not of one model"
        )
    return tokenizer


def _whole_entities(tags: list[str]) -> list[str]:
    """Return the tags of the entities that LTP reads from `tags`: S alone, else B, I…, E."""
    from ltp_extension.algorithms import get_entities

    whole = ["O"] * len(tags)
    for kind, first, last in get_entities(tags):
        if first == last:
            whole[first] = f"S-{kind}"
            continue
        whole[first : last + 1] = [f"I-{kind}"] * (last + 1 - first)
        whole[first], whole[last] = f"B-{kind}", f"E-{kind}"
    return whole
