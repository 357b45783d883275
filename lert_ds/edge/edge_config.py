"""config.json of an edge folder: read, and held to the graph that it lies beside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lert_ds.edge.folder import CONFIG
from lert_ds.errors import ModelError

MASKED_LM = "BertForMaskedLM"
_NEEDED = ("vocab_size", "hidden_size", "max_position_embeddings", "architectures")

Tree = dict[str, Any]


def read_config(folder: Path) -> Tree:
    """Return the configuration of an edge folder.

    Raises:
        ModelError: there is none, or it lacks what every one of them has.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG}; export the model again")
    try:
        tree: Any = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error}); export the model again") from error
    missing = [key for key in _NEEDED if not (isinstance(tree, dict) and tree.get(key))]
    if missing:
        raise ModelError(f"{path}: {', '.join(missing)} is not in it; export the model again")
    return dict(tree)


def check_config(source: Path, config: Tree, graph: str, sizes: Mapping[str, int | None]) -> None:
    """Hold a configuration to what a graph gives.

    Args:
        source: Of `config`, for the message of an error.
        config: As `read_config` returns it.
        graph: Name of the graph's file.
        sizes: Output of the graph to its last axis, None where that is open.

    Raises:
        ModelError: it is the configuration of another model.
    """
    for output, (key, wanted) in _outputs_of(config).items():
        if output not in sizes:
            raise ModelError(
                f"{source}: {key} asks for the output {output}, which {graph} has not (it has: "
                f"{', '.join(sizes)}); they are not of one model: export it again"
            )
        found = sizes[output]
        if None not in (found, wanted) and found != wanted:
            raise ModelError(
                f"{source}: {key} makes {output} {wanted} wide, in {graph} it is {found}; they "
                "are not of one model: export it again"
            )
    named = _outputs_of(config)
    for output in sizes:
        if output.endswith("_logits") and output not in named:
            raise ModelError(
                f"{source}: nothing in it names the classes of {graph}'s output {output}; "
                "they are not of one model: export it again"
            )


def _outputs_of(config: Tree) -> dict[str, tuple[str, int | None]]:
    """Return the outputs that a configuration promises: the key that does, and how wide it says."""
    kind = config["architectures"][0]
    if kind == "BertModel":
        return {"last_hidden_state": ("hidden_size", config["hidden_size"])}
    if kind == "BertForQuestionAnswering":
        return dict.fromkeys(("start_logits", "end_logits"), ("architectures", None))
    if kind == MASKED_LM:
        return {
            "logits": ("vocab_size", config["vocab_size"]),
            **{
                f"{task}_logits": (f"tag_sets.{task}", len(tags))
                for task, tags in (config.get("tag_sets") or {}).items()
            },
        }
    # transformers leaves out what is as it would be anyway: two classes.
    return {"logits": ("id2label", len(config.get("id2label") or range(2)))}
