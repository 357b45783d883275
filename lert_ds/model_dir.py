"""Model folders: a folder or hub name to a model, and a model to a folder written whole.

    model/
      config.json            LertConfig; its auto_map names the two files of code below
      model.safetensors
      vocab.txt tokenizer.json tokenizer_config.json
      configuration_lert.py modeling_lert.py      so that it loads where lert_ds is not installed
      run.json               where it comes from: resolved configuration, versions, metrics
      README.md              the model card: what both JSON files say, for a reader and the hub

Read too: hfl/chinese-lert-*, and any other BERT of transformers (RoBERTa-wwm, MacBERT).
"""

import contextlib
import json
import logging
import re
import shutil
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from lert_ds import configuration_lert, model_card, modeling_lert, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ModelError
from lert_ds.files import write_json, write_whole_folder
from lert_ds.labels import TagSets
from lert_ds.model_origin import title_of, with_sources
from lert_ds.model_source import (
    CONFIG,
    check_tokenizer,
    find_weights,
    read_config,
    resolve,
)
from lert_ds.model_weights import read_weights
from lert_ds.modeling_lert import AUTO_CLASSES, LertForPreTraining, LertModel

__all__ = [
    "LoadReport",
    "check_tokenizer",
    "count_parameters",
    "load",
    "read_config",
    "resolve",
    "save",
]

RUN = "run.json"

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoadReport:
    """What of a loaded model does not come from the folder, and what of the folder is not used."""

    folder: Path
    weights: str
    """Name of the file, or of the index of the files, that held the weights."""
    random: tuple[str, ...]
    """Parameters that start from random."""
    unused: tuple[str, ...]
    """Weights of the folder that the model has no place for."""


def load(
    source: str | Path,
    cls: type[M] = LertForPreTraining,
    tag_sets: TagSets | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    **changes: Any,
) -> tuple[M, LoadReport]:
    """Return the model of a folder or hub name, and what of it starts from random.

    What starts from random is logged as a warning too.

    Args:
        source: A model folder of this project or of a BERT of transformers, or a name on the hub.
        cls: A class of `lert_ds.modeling_lert`.
        tag_sets: The linguistic heads that a `LertForPreTraining` shall have: one in the folder is
            kept where its tags are the same in the same order. None keeps those of the folder.
        dtype: Type of the parameters, whatever that in the folder.
        attention: `sdpa`, `eager` (gives attention probabilities), `flash_attention_2`, ….
        **changes: Keys of the configuration to change, such as `hidden_dropout_prob`.

    Raises:
        ModelError: the model is not there, or cannot be read, or is no BERT, or its weights do not
            have the shapes that its configuration says.
    """
    folder = resolve(source)
    config = read_config(folder, **changes)
    if not issubclass(cls, LertForPreTraining):
        config.tag_sets = None
    weights = find_weights(folder)
    tensors = read_weights(folder, weights)
    with _quiet_transformers():
        model, facts = cls.from_pretrained(  # type: ignore[attr-defined]
            None,  # the folder itself is none of transformers' business: see model_weights.py
            config=config,
            state_dict=tensors,
            dtype=dtype,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # told, and refused, below
            output_loading_info=True,
            trust_remote_code=False,
        )
    _refuse_other_shapes(folder / weights, facts["mismatched_keys"])
    random = set(facts["missing_keys"])
    if tag_sets is not None and isinstance(model, LertForPreTraining):
        for task in model.set_tag_sets(tag_sets):
            random |= {f"cls.predictions.output_{task}.{name}" for name in ("weight", "bias")}
    present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    report = LoadReport(
        folder=folder,
        weights=weights,
        random=tuple(sorted(random & present)),
        unused=tuple(sorted(facts["unexpected_keys"])),
    )
    _tell(source, report)
    return model, report


def save(
    model: transformers.PreTrainedModel,
    tokenizer_folder: Path,
    folder: Path,
    run: Mapping[str, Any] | None = None,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Tensor] = types.MappingProxyType({}),
) -> None:
    """Write `model` as the model folder `folder`, whole or not at all; one that is there goes.

    Args:
        model: Of a class of `lert_ds.modeling_lert`.
        tokenizer_folder: A model or corpus folder whose tokenizer the model was trained with.
        folder: Written beside its place and renamed to it.
        run: Content of run.json.
        state_dict: The model's weights by its own names, where `model` does not hold them whole
            (ZeRO-3) or at all (meta device); None takes those of `model`.
        extra: Weights that other classes read from the same folder, by their names there: a
            pre-trained pooler, `bert.pooler.…`, which the model that is pre-trained has none of.

    Raises:
        ModelError: the tokenizer has ids that the model has no embedding for.
    """
    weights = dict(model.state_dict() if state_dict is None else state_dict)
    _check_reloads(model, weights)
    for tied in model.all_tied_weights_keys:
        weights.pop(tied, None)
    assert not extra.keys() & weights.keys(), sorted(extra.keys() & weights.keys())
    weights |= extra
    with write_whole_folder(folder) as temporary:
        tokenizer_files.copy(tokenizer_folder, temporary, model.config.vocab_size)
        with _quiet_transformers():
            model.save_pretrained(temporary, state_dict=weights)
        _add_code(temporary)
        if run is not None:
            write_json(temporary / RUN, with_sources(run))
        model_card.write_card(temporary, title_of(folder.absolute()))


def count_parameters(config: LertConfig, cls: type[nn.Module] = LertForPreTraining) -> int:
    """Return how many parameters a model of `config` has, tied ones once, without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in cls(config).parameters())


def _refuse_other_shapes(path: Path, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    for name, found, wanted in sorted(mismatched, key=lambda entry: entry[0]):
        raise ModelError(
            f"{path}: {name} is {list(found)} where {CONFIG} makes it {list(wanted)}; "
            "the two files are not of one model"
        )


def _tell(source: str | Path, report: LoadReport) -> None:
    if report.random:
        log.warning(
            "%s: these start from RANDOM, for want of weights: %s",
            source,
            ", ".join(_modules_of(report.random)),
        )
    if report.unused:
        log.info("%s: left unread: %s", source, ", ".join(_modules_of(report.unused)))


def _modules_of(parameters: Iterable[str]) -> list[str]:
    return sorted({re.sub(r"\.(weight|bias)$", "", name) for name in parameters})


def _check_reloads(model: transformers.PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Hold `weights` to what the configuration would build, so that what is saved can be loaded."""
    assert type(model) in AUTO_CLASSES.values(), type(model)
    # An encoder alone may have a pooler or not, whatever its configuration.
    options = {"add_pooling_layer": model.pooler is not None} if type(model) is LertModel else {}
    with torch.device("meta"):
        rebuilt = type(model)(model.config, **options)
    wanted = {key: value.shape for key, value in rebuilt.state_dict().items()}
    found = {key: value.shape for key, value in weights.items()}
    for key in model.all_tied_weights_keys:
        wanted.pop(key), found.pop(key, None)
    assert found == wanted, sorted(found.items() ^ wanted.items())[:4]


def _add_code(folder: Path) -> None:
    """Let `trust_remote_code=True` load the folder with its own copy of the code."""
    for module in (configuration_lert, modeling_lert):
        assert module.__file__ is not None
        shutil.copyfile(module.__file__, folder / Path(module.__file__).name)
    path = folder / CONFIG
    tree = json.loads(path.read_text("utf-8"))
    tree["auto_map"] = {
        "AutoConfig": f"configuration_lert.{LertConfig.__name__}",
        **{auto: f"modeling_lert.{cls.__name__}" for auto, cls in AUTO_CLASSES.items()},
    }
    write_json(path, tree)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence progress bars and reports of transformers: `LoadReport` says it, and once."""
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
