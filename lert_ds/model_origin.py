"""What made a model, read from its run.json: which kind of run, and of what models and texts.

    {"config": {"teacher": ["hfl/chinese-lert-base"], "student": {…}, …}, …}
        →  Origin("distilled", "A LERT distilled from …", models=("hfl/chinese-lert-base",))

run.json says what a run was told, in paths of the machine that it ran on. `sources_of` adds to it,
while these are at hand, what can be said of them elsewhere: the sizes and annotators of corpora,
and which of the models named are names on the hub.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import huggingface_hub

from lert_ds.card_markdown import Tree, as_tree, code
from lert_ds.data.shards import MANIFEST

SOURCES = "sources"
"""Key of run.json for what `sources_of` returns."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SEED = re.compile(r"seed-\d+")


class Origin(NamedTuple):
    """What made a model."""

    kind: str
    """pre-trained, distilled, pruned, recovered, fine-tuned, converted or unknown."""
    sentence: str
    """Of names, each in braces: `{0}` is `models[0]`."""
    models: tuple[str, ...] = ()
    """The models that it comes from, as run.json names them."""


def origin_of(config: Tree, run: Tree | None) -> Origin:
    """Return what made a model.

    Args:
        config: Content of its config.json.
        run: Content of its run.json, or None where there is none.
    """
    if run is None:
        return Origin("unknown", "A LERT; its folder does not record how it was made.")
    told = as_tree(run.get("config"))
    cut = config.get("layer_attention_heads") or config.get("layer_intermediate_sizes")
    if converted := _names(run.get("converted_from")):
        sentence = "A LERT converted from the TensorFlow checkpoint {0}, weight by weight."
        return Origin("converted", sentence, converted)
    if pruned := _names(run.get("pruned_from")):
        return Origin("pruned", "A LERT pruned from {0}.", pruned)
    if name := as_tree(told.get("task")).get("name"):
        sentence = f"A LERT fine-tuned from {{0}} for the task {code(name)}."
        return Origin("fine-tuned", sentence, _names(told.get("model")))
    if "student" in told:
        return _distilled(told, bool(cut))
    start = _names(told.get("init_from"))
    if start and cut:
        return Origin("recovered", "A pruned LERT, {0}, trained again on text.", start)
    if start:
        return Origin("pre-trained", "A LERT pre-trained further, from the weights of {0}.", start)
    if "lip" in told:
        return Origin("pre-trained", "A LERT pre-trained from random weights.")
    return Origin("unknown", "A LERT; its run.json does not record what kind of run made it.")


def _distilled(told: Tree, cut: bool) -> Origin:
    teachers = _names(told.get("teacher"))
    start = _names(as_tree(told.get("student")).get("model"))
    listed = " and ".join(f"{{{number}}}" for number in range(len(teachers)))
    if told.get("labels_only"):
        sentence = (
            f"A LERT of the shape of a student of {listed}, trained without its teacher, for "
            "comparison."
        )
        return Origin("pre-trained", sentence, teachers)
    if start:
        state = "pruned LERT" if cut else "LERT"
        sentence = f"A {state}, {{{len(teachers)}}}, trained again with {listed} as its teacher."
        return Origin("recovered" if cut else "distilled", sentence, (*teachers, *start))
    return Origin("distilled", f"A LERT distilled from {listed}.", teachers)


def sources_of(run: Tree) -> dict[str, Any]:
    """Return what can be found out here of the texts and models that a run names.

    Returns:
        `corpora`, a list with the `name`, `instances`, `length`, `tokens`, `annotator` and
        `annotator_model` of each corpus folder that is there; and `hub_models`, those of the
        models named that this machine has from the hub. Empty where there is neither.
    """
    told = as_tree(run.get("config"))
    named = [
        *(_names(run.get(key)) for key in ("pruned_from", "converted_from")),
        *(_names(told.get(key)) for key in ("init_from", "teacher", "model")),
        _names(as_tree(told.get("student")).get("model")),
    ]
    models = sorted({name for names in named for name in names if _is_of_the_hub(name)})
    corpora = [facts for name in _names(told.get("corpus")) if (facts := _corpus_facts(Path(name)))]
    found: dict[str, Any] = {"corpora": corpora, "hub_models": models}
    return {key: value for key, value in found.items() if value}


def with_sources(run: Tree) -> Tree:
    """Return the content of a run.json with what `sources_of` finds, where it finds anything."""
    found = sources_of(run)
    return {**run, SOURCES: found} if found and SOURCES not in run else run


def title_of(path: str | PurePath) -> str:
    """Return what a folder is called elsewhere, where its path means nothing.

    runs/lert-small/model → lert-small; runs/ocnli/seed-3/model → ocnli; corpora/wiki → wiki
    """
    parts = [part for part in PurePath(path).parts if part not in ("/", "\\", ".", "..")]
    while len(parts) > 1 and (parts[-1] == "model" or _SEED.fullmatch(parts[-1])):
        parts.pop()
    return parts[-1] if parts else "model"


def _names(value: Any) -> tuple[str, ...]:
    """Return the names that stand under a key: one, or a list of them."""
    given: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return tuple(name for name in given if isinstance(name, str) and name)


def _is_of_the_hub(name: str) -> bool:
    """Return whether a name is one on the hub, from which this machine has it."""
    if not _HUB_NAME.fullmatch(name) or Path(name).exists():
        return False
    return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)


def _corpus_facts(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = as_tree(json.loads((folder / MANIFEST).read_text("utf-8")))
    except (OSError, ValueError):
        return None  # it is not on this machine any more; the card then has its name
    annotator = as_tree(as_tree(manifest.get("config")).get("annotator"))
    model = annotator.get("model")
    return {
        "name": title_of(folder),
        "instances": manifest.get("instances"),
        "length": manifest.get("length"),
        "tokens": as_tree(manifest.get("statistics")).get("tokens"),
        "annotator": annotator.get("kind"),
        "annotator_model": title_of(model) if isinstance(model, str) else None,
    }
