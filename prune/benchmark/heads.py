"""What a column computes: the head of a model or graph, and what its scores are.

    config.json  architectures ["LertForQuestionAnswering"]  →  question_answering

A benchmark compares models of one head: to fill [MASK] takes another time than to name a class.
"""

from collections.abc import Sequence

from lert_ds.errors import ConfigError
from lert_ds.finetune.tasks import Kind
from prune.export.export_config import HeadName
from prune.export.source import HEADS

MLM: HeadName = "mlm"
OF_KIND: dict[Kind, HeadName] = {
    "classification": "sequence_classification",
    "entities": "token_classification",
    "spans": "question_answering",
}
"""Kind of task to the head that answers it."""
SCORES: dict[str, str] = {
    "sequence_classification": "the classes",
    "token_classification": "every token's tag",
    "question_answering": "every token as first and last",
}
_BY_NAME: dict[str, HeadName] = {
    name: head for head, known in HEADS.items() for name in (known.lert.__name__, known.bert)
}


def head_of(architectures: Sequence[str] | None) -> HeadName:
    """Return the head that a config.json names; of one that names none that is known, the MLM's."""
    return _BY_NAME.get(architectures[0], MLM) if architectures else MLM


def refuse_others(columns: Sequence[tuple[str, HeadName]], kind: Kind | None) -> None:
    """Refuse columns that do not compute the same, or not what a task asks.

    Args:
        columns: What the user calls each model, and its head.
        kind: Of the task that they are evaluated on; None where there is none.

    Raises:
        ConfigError: names the first that does not fit.
    """
    first, head = columns[0]
    for source, own in columns:
        if kind is not None and own != OF_KIND[kind]:
            raise ConfigError(
                f"task: {source} is a model for {own}, and this task is one of {OF_KIND[kind]}; "
                "name models that were fine-tuned for it"
            )
        if own != head:
            raise ConfigError(
                f"models: {first} is a model for {head} and {source} one for {own}, which take "
                "other times; compare those of one kind"
            )
