"""What an export must not cost: the accuracies of each graph beside those of PyTorch."""

from collections.abc import Mapping, Sequence

from lert_ds.errors import ModelError
from prune.export.check import Run
from prune.export.export_config import AccuracyConfig
from prune.export.questions import UNKNOWN, Question


def measure(run: Run, questions: Sequence[Question]) -> dict[str, float]:
    """Return the share of right answers by name; what is nowhere known is left out."""
    hits: dict[str, int] = {}
    counts: dict[str, int] = {}
    for question in questions:
        outputs = run(question.inputs)
        for name, (output, right) in question.answers.items():
            logits = outputs[output]
            if logits.ndim == 3:
                logits = logits.reshape(-1, logits.shape[-1])[question.places]
            hits[name] = hits.get(name, 0) + int((logits.argmax(-1) == right).sum())
            counts[name] = counts.get(name, 0) + int((right != UNKNOWN).sum())
    return {name: hits[name] / count for name, count in counts.items() if count}


def refuse_drop(
    config: AccuracyConfig, file: str, wanted: Mapping[str, float], found: Mapping[str, float]
) -> None:
    """Hold the accuracies of a graph to those of PyTorch.

    Raises:
        ModelError: one has fallen by more than is allowed.
    """
    for name, accuracy in wanted.items():
        if accuracy - found[name] > config.largest_drop:
            raise ModelError(
                f"{name} of {file} is {found[name]:.4f} where PyTorch has {accuracy:.4f}: more "
                f"than accuracy.largest_drop = {config.largest_drop:g} less; nothing was written: "
                "say int8=false, or allow more"
            )
