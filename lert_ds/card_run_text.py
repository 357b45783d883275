"""The sections of a model card that run.json fills: data, training, results, versions, licences.

Each is a pure function of its content, which may be anybody's: what is not as it should be is left
out.
"""

from collections.abc import Mapping
from pathlib import PurePath

from lert_ds.card_markdown import (
    Tree,
    as_tree,
    code,
    metrics,
    number,
    section,
    shown,
    strings,
    table,
)
from lert_ds.model_origin import SOURCES, title_of

_PRECISIONS = ("fp32", "bf16", "fp16", "autocast")
_OWN = "this model"
_ANNOTATORS = {
    "ltp": "Tags by LTP, which is free for research and paid for commerce: see its licence.",
    "jieba": "Tags by jieba (MIT licence), an approximation of LTP's.",
    "conllu": "Tags that the annotated text brought along: its licence holds for them.",
    "precomputed": "Tags that the annotated text brought along: its licence holds for them.",
}


def data(run: Tree | None) -> str:
    """Return what it learnt from: names of corpora, sizes, the task's files."""
    told = as_tree((run or {}).get("config"))
    facts = _corpora(run)
    known = {str(corpus.get("name")) for corpus in facts}
    rows = [
        (
            code(corpus.get("name")),
            *(shown(corpus.get(key)) for key in ("instances", "length", "tokens")),
            code(corpus.get("annotator") or ""),
        )
        for corpus in facts
    ]
    for name in strings(told.get("corpus")):
        if title_of(name) not in known:
            rows.append((code(title_of(name)), "–", "–", "–", "–"))
    lines = []
    if rows:
        head = ("corpus", "instances", "tokens each", "tokens in all", "annotator")
        lines.append(table(head, rows))
    task = as_tree(told.get("task"))
    if isinstance(task.get("name"), str):
        lines.append(f"The files of the task {code(task['name'])}, from those who own them.\n")
    fingerprint = (run or {}).get("corpus")
    if isinstance(fingerprint, str):
        lines.append(f"Fingerprint (SHA-256 of the data): {code(fingerprint)}\n")
    files = as_tree((run or {}).get("files"))
    if files and (run or {}).get("converted_from"):
        hashes = [(code(name), code(value)) for name, value in files.items()]
        lines.append(table(("file", "SHA-256"), hashes))
    return section("Data", "\n".join(lines))


def training(run: Tree | None) -> str:
    """Return the numbers of the training."""
    run = run or {}
    told = as_tree(run.get("config"))
    train = as_tree(told.get("train"))
    steps, batch = number(run.get("steps")), number(train.get("batch_size"))
    rows = []
    if steps is not None:
        chosen = number(run.get("chosen_step"))
        rows.append(("steps", f"{steps:,}"))
        if chosen is not None and chosen != steps:
            rows.append(("weights of step", f"{chosen:,}"))
    if batch is not None:
        rows.append(("batch", f"{batch:,} instances"))
    if (samples := number(run.get("samples"))) is not None:
        rows.append(("instances seen", f"{samples:,}"))
        lengths = {number(corpus.get("length")) for corpus in _corpora(run)}
        if len(lengths) == 1 and (length := lengths.pop()) is not None:
            rows.append(("tokens seen", f"{samples * length:,}"))
    if (rate := number(train.get("learning_rate"))) is not None:
        rows.append(("learning rate", f"{rate:g}"))
    name = as_tree(told.get("optimizer")).get("name")
    if rows and isinstance(name, str):
        rows.append(("optimizer", code(name)))
    if isinstance(path := told.get("deepspeed"), str):
        stem = PurePath(path).stem
        rows += [("precision", word) for word in stem.split("_") if word in _PRECISIONS]
        rows.append(("DeepSpeed", code(PurePath(path).name)))
    for key, label in (("processes", "processes"), ("seconds", "seconds")):
        if rows and (value := number(run.get(key))) is not None:
            rows.append((label, f"{value:,}"))
    if rows and (seed := number(told.get("seed"))) is not None:
        rows.append(("seed", f"{seed}"))
    return section("Training", table(("", ""), rows) if rows else "")


def results(run: Tree | None) -> str:
    """Return the table of the held-out metrics, beside what else is known of each."""
    run = run or {}
    columns: dict[str, Mapping[str, float]] = {}
    if valid := metrics(run.get("valid")):
        columns[_OWN] = valid
        for metric, lines in as_tree(run.get("baselines")).items():
            for line, value in metrics(lines).items():
                columns[line] = {**columns.get(line, {}), str(metric): value}
    for stage, reached in as_tree(run.get("held_out")).items():
        if found := metrics(reached):
            columns[str(stage)] = found
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    if not names:
        return ""
    rows = [
        (
            code(name),
            *(f"{column[name]:.4g}" if name in column else "–" for column in columns.values()),
        )
        for name in names
    ]
    heads = [line if line == _OWN else code(line) for line in columns]
    return section(
        "Results",
        "On text held out of the training; accuracies are shares from 0 to 1.\n\n"
        + table(("metric", *heads), rows),
    )


def versions(run: Tree | None) -> str:
    """Return what it was made with."""
    found = as_tree((run or {}).get("versions"))
    rows = [
        (code(name), code(value))
        for name, value in found.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    return section("Made with", table(("", "version"), rows) if rows else "")


def licences(run: Tree | None) -> str:
    """Return whose licences have a say; what the weights may be used for is not decided here."""
    lines = [
        "- The code in this folder is of `lert-ds`, Apache 2.0.",
        "- The licence of the weights is for those who trained them to name, in the front matter.",
        "- The texts that it learnt from have licences of their own.",
    ]
    if strings(as_tree((run or {}).get("config")).get("teacher")) or hub_models(run):
        lines.append("- So have the models that it comes from.")
    kinds = dict.fromkeys(str(corpus.get("annotator")) for corpus in _corpora(run))
    lines += [
        f"- {line}" for line in dict.fromkeys(_ANNOTATORS.get(kind) for kind in kinds) if line
    ]
    return section("Licences", "\n".join(lines))


def final_metrics(run: Tree) -> Mapping[str, float]:
    """Return the held-out metrics of the model as it is: of a pruned one, of the last stage."""
    if valid := metrics(run.get("valid")):
        return valid
    stages = list(as_tree(run.get("held_out")).values())
    return metrics(stages[-1]) if stages else {}


def dataset_of(run: Tree) -> str:
    """Return what the held-out text is called: by the names of the corpora, or of the task."""
    told = as_tree(run.get("config"))
    if isinstance(name := as_tree(told.get("task")).get("name"), str):
        return name
    given = strings(told.get("corpus_valid")) or strings(told.get("corpus"))
    names = ", ".join(dict.fromkeys(map(title_of, given)))
    return f"{names or 'text'} (held out)"


def _corpora(run: Tree | None) -> list[Tree]:
    found = as_tree((run or {}).get(SOURCES)).get("corpora")
    return [as_tree(corpus) for corpus in found] if isinstance(found, list) else []


def hub_models(run: Tree | None) -> tuple[str, ...]:
    """Return those of the models that a run names which are names on the hub."""
    return strings(as_tree((run or {}).get(SOURCES)).get("hub_models"))
