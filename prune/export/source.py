"""What of a model folder is exported: which head, under which name, and the model itself."""

import json
from dataclasses import dataclass
from typing import Any

from torch import nn

from lert_ds import model_dir, modeling_lert
from lert_ds.errors import ConfigError, ModelError
from lert_ds.model_source import CONFIG
from lert_ds.modeling_lert import LertForPreTraining
from prune.export.export_config import ExportConfig, HeadName


@dataclass(frozen=True)
class Head:
    """A kind of model that can be exported."""

    lert: type[nn.Module]
    bert: str
    """The class of transformers that readers of the edge folder know it by."""


HEADS: dict[HeadName, Head] = {
    "mlm": Head(LertForPreTraining, "BertForMaskedLM"),
    "encoder": Head(modeling_lert.LertModel, "BertModel"),
    "sequence_classification": Head(
        modeling_lert.LertForSequenceClassification, "BertForSequenceClassification"
    ),
    "token_classification": Head(
        modeling_lert.LertForTokenClassification, "BertForTokenClassification"
    ),
    "question_answering": Head(modeling_lert.LertForQuestionAnswering, "BertForQuestionAnswering"),
}

_TRAINED_FOR: dict[str, HeadName] = {
    **{head.lert.__name__: name for name, head in HEADS.items()},
    **{head.bert: name for name, head in HEADS.items()},
    modeling_lert.LertForMaskedLM.__name__: "mlm",
    "BertForPreTraining": "mlm",
}
"""Name of a class in config.json to its head."""


def find_head(settings: ExportConfig) -> HeadName:
    """Return the head to export: the one asked for, or that which the model folder was trained for.

    Raises:
        ModelError: it cannot be read, or its config.json does not say.
        ConfigError: something was asked that this head cannot give.
    """
    folder = model_dir.resolve(settings.model)
    model_dir.read_config(folder)
    names = json.loads((folder / CONFIG).read_text("utf-8")).get("architectures") or []
    found = settings.head
    if found == "auto":
        if not names or names[0] not in _TRAINED_FOR:
            raise ModelError(
                f"{folder / CONFIG}: architectures is {names}, which names no head that is known "
                f"here; say head= one of {', '.join(HEADS)}"
            )
        found = _TRAINED_FOR[names[0]]
    if settings.masked_positions and found != "mlm":
        raise ConfigError(
            f"masked_positions: {settings.model} is a model for {found}, which fills no [MASK]; "
            "leave it out"
        )
    _refuse_accuracy(settings, found)
    return found


def load_model(settings: ExportConfig, head: HeadName) -> Any:
    """Return the model to export, in fp32 and in evaluation mode, without what is not exported.

    Raises:
        ModelError: it cannot be read, or it has no weights for `head`.
    """
    model: Any
    model, loaded = model_dir.load(settings.model, HEADS[head].lert)
    random = set(loaded.random)
    if head == "encoder":
        model.pooler = None  # what stands above it is the last hidden state
    elif head == "mlm":
        # A head that has learnt nothing says nothing.
        learnt = {
            task: tags
            for task, tags in (model.config.tag_sets or {}).items()
            if settings.tags and f"cls.predictions.output_{task}.weight" not in random
        }
        model.set_tag_sets(learnt)
    present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if missing := sorted(random & present):
        raise ModelError(
            f"{settings.model}: it has no weights for head = {head} ({missing[0]}); name a model "
            "that was trained for it, or another head"
        )
    return model.eval()


def _refuse_accuracy(settings: ExportConfig, head: HeadName) -> None:
    if settings.accuracy.corpus and head != "mlm":
        raise ConfigError(
            f"accuracy.corpus: {settings.model} is a model for {head}, which fills no [MASK]; "
            "name accuracy.examples instead"
        )
    if settings.accuracy.examples is not None and not head.endswith("classification"):
        raise ConfigError(
            f"accuracy.examples: {settings.model} is a model for {head}, which has no labels; "
            + ("name accuracy.corpus instead" if head == "mlm" else "leave it out")
        )
