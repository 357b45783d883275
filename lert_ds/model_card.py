"""The model card, README.md of a model folder: what config.json and run.json say, for a reader.

    config.json {"architectures": ["LertForPreTraining"], "num_hidden_layers": 12, …}
    run.json    {"config": {"corpus": ["corpora/wiki"], …}, "valid": {"mlm/loss": 2.1, …}, …}
        →   front matter for the hub (language, pipeline, metrics)
            # lert-small: what it is, its shape, how to load it, data, training, results, licences

No path of the machine gets into it, only names of folders; and no token (`redaction.py`). Its last
line holds a hash of what stands above, by which a card that somebody has edited is known.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from lert_ds import card_run_text, card_text
from lert_ds.card_markdown import Tree, as_tree, plain
from lert_ds.errors import ModelError
from lert_ds.files import write_whole
from lert_ds.model_origin import origin_of, title_of, with_sources
from lert_ds.redaction import redact

CARD = "README.md"
CONFIG, RUN = "config.json", "run.json"
_LAST_LINE = re.compile(r"<!-- lert-ds: ([0-9a-f]{16}) -->\n*\Z")
_PIPELINES = {
    "ForPreTraining": "fill-mask",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}
"""End of a class's name to what the hub calls its use."""
_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "f1": "f1",
    "em": "exact_match",
    "perplexity": "perplexity",
}
"""Last part of a metric's name to what the hub calls it."""


class Facts(NamedTuple):
    """What a card is made of."""

    config: Tree
    """Content of config.json."""
    run: Tree | None
    """Content of run.json, `sources` among it (`model_origin.sources_of`)."""
    name: str
    """What the model is called."""
    parameters: int | None = None


def model_card(facts: Facts, address: str | None = None) -> str:
    """Return the text of a model card.

    Args:
        facts: What it is made of.
        address: What the model is loaded by, a name on the hub; None for its folder.
    """
    origin = origin_of(facts.config, facts.run)
    pipeline = pipeline_of(facts.config)
    parts = [
        f"---\n{_front_matter(facts, origin.kind, pipeline)}---\n",
        f"# {plain(facts.name)}\n",
        card_text.what_it_is(facts.config, facts.run, origin),
        card_text.shape(facts.config, facts.parameters),
        card_text.use(facts.config, address, pipeline),
        card_run_text.data(facts.run),
        card_run_text.training(facts.run),
        card_run_text.results(facts.run),
        card_run_text.versions(facts.run),
        card_run_text.licences(facts.run),
        card_text.CITATION,
    ]
    text = redact("\n".join(part for part in parts if part))
    return f"{text}\n<!-- lert-ds: {_hash(text)} -->\n"


def is_edited(text: str) -> bool:
    """Return whether a card is not, or no longer, what `model_card` made."""
    match = _LAST_LINE.search(text)
    return match is None or match[1] != _hash(text[: match.start()].removesuffix("\n"))


def write_card(folder: Path, name: str, address: str | None = None) -> None:
    """Write the card of the model folder `folder`, whole.

    Raises:
        ModelError: its config.json or run.json cannot be read.
    """
    text = model_card(read_facts(folder, name), address)
    write_whole(folder / CARD, lambda file: file.write(text.encode("utf-8")))


def read_facts(folder: Path, name: str | None = None) -> Facts:
    """Return what a card is made of; `name` is by default that of the folder.

    Raises:
        ModelError: there is no config.json, or a file cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: no {CONFIG}, so it is no model folder; name one that has it")
    run = _read(folder / RUN) if (folder / RUN).is_file() else None
    run = run and with_sources(run)
    name = title_of(folder.absolute()) if name is None else name
    return Facts(_read(folder / CONFIG), run, name, _count_parameters(folder))


def pipeline_of(config: Tree) -> str:
    """Return what the hub calls the use of a model of this class."""
    architecture = card_text.architecture_of(config)
    found = (use for end, use in _PIPELINES.items() if architecture.endswith(end))
    return next(found, "feature-extraction")


def _front_matter(facts: Facts, kind: str, pipeline: str) -> str:
    hub_models = card_run_text.hub_models(facts.run)
    origin = origin_of(facts.config, facts.run)
    based_on = [name for name in origin.models if name in hub_models]
    results = list(_results(facts, pipeline))
    data = ModelCardData(
        language="zh",
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["lert", "bert", "chinese", *([kind] if kind != "unknown" else [])],
        base_model=based_on or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return f"{data.to_yaml()}\n"


def _results(facts: Facts, pipeline: str) -> Iterator[EvalResult]:
    """Yield what the hub shows of the held-out metrics: those that it has a name for."""
    run = facts.run or {}
    dataset = card_run_text.dataset_of(run)
    for name, value in card_run_text.final_metrics(run).items():
        head, _, last = name.rpartition("/")
        if last not in _METRICS:
            continue
        task = "token-classification" if head in card_text.tag_sets(facts.config) else pipeline
        yield EvalResult(
            task_type="fill-mask" if head == "mlm" else task,
            dataset_type=re.sub(r"[^\w.-]+", "-", dataset).strip("-").lower() or "text",
            dataset_name=dataset,
            metric_type=_METRICS[last],
            metric_value=round(value, 6),
            metric_name=name,
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error}); copy it again") from error
    return as_tree(tree)


def _count_parameters(folder: Path) -> int | None:
    """Return how many numbers the weights are, by the headers of their files; tied ones once."""
    counts = [_count_of(path) for path in folder.glob("*.safetensors")]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _count_of(path: Path) -> int | None:
    """Return the parameters of a file: an 8-byte length, then JSON with the shape of each."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            header = as_tree(json.loads(file.read(length)))
            shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
            return sum(math.prod(map(int, shape)) for shape in shapes)
        except (ValueError, KeyError, TypeError):
            return None
