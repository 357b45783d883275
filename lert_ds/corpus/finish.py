"""The records of all tasks to a corpus folder: tokenizer, statistics, manifest, and into place."""

import importlib.metadata
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lert_ds.corpus import outputs
from lert_ds.corpus.assemble import SIDES, TRAIN
from lert_ds.corpus.corpus_statistics import render, summarise
from lert_ds.corpus.vocabulary import Vocabulary, load_tokenizer, save_tokenizer
from lert_ds.corpus.work import Work, total
from lert_ds.data.shards import HELD_OUT, MANIFEST, Manifest, write_manifest
from lert_ds.errors import ConfigError, CorpusError
from lert_ds.files import refuse_finished, write_json, write_whole
from lert_ds.labels import TASKS

Array = npt.NDArray[Any]

ANNOTATED = "annotated"
_LIBRARIES = {"jieba": "jieba", "ltp": "ltp"}
_OURS = frozenset(
    {
        *("manifest.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"),
        *("statistics.md", "statistics.json", "summary.json"),
        *("shards", "held_out", "annotated"),
    }
)
"""All that `prepare` puts into a corpus folder: what `overwrite` may remove."""


def refuse_output(output: Path, overwrite: bool) -> None:
    """Refuse an output folder that this run must not replace.

    Raises:
        ConfigError: it holds a finished corpus, or anything that `prepare` has not made.
    """
    refuse_finished(output, MANIFEST, overwrite)
    foreign = (
        sorted(p.name for p in output.iterdir() if p.name not in _OURS) if output.is_dir() else []
    )
    if foreign:
        raise ConfigError(
            f"output = {output}: the folder holds {foreign[0]}, which is no part of a corpus; "
            "name a new folder"
        )


def finish(work: Work) -> None:
    """Complete the corpus and move it to its place; done twice it is the same."""
    if work.finished:
        work.install()
        return
    records = list(work.records("packed"))
    annotated = list(work.records("annotated"))
    vocabulary = load_tokenizer(str(work.tokenizer))
    sides = [side for side in SIDES if side == TRAIN or work.config.held_out]
    summaries = {side: _summarise(work, side, records, vocabulary) for side in sides}
    for side, summary in summaries.items():
        if not summary["instances"]:
            raise CorpusError(
                f"output = {work.output}: nothing is left for the {side} corpus once words are "
                "aligned; see whether the tokenizer knows the text, give more of it, or change "
                "held_out"
            )
    speed = _speed(annotated, records)
    for side in reversed(sides):  # the training corpus last: its manifest completes the folder
        folder = work.corpus / HELD_OUT if side == HELD_OUT else work.corpus
        counts = total(record[side]["counts"] for record in records)
        if side == TRAIN:
            counts += _counts_of_all(work, annotated)
            _move_annotations(work)
        _write_side(work, folder, vocabulary, summaries[side], counts, records, side, speed)
    outputs.record(work, outputs.FINISH)
    work.install()


def _write_side(
    work: Work,
    folder: Path,
    vocabulary: Vocabulary,
    summary: dict[str, Any],
    counts: Counter[str],
    records: list[Any],
    side: str,
    speed: dict[str, Any],
) -> None:
    sha256 = save_tokenizer(vocabulary, folder, work.config.max_length)
    ordered = {reason: counts[reason] for reason in sorted(counts)}
    statistics = {**summary, "speed": speed}
    name = work.output.name + (f"/{HELD_OUT}" if side == HELD_OUT else "")
    page = render(name, statistics, ordered).encode("utf-8")
    write_whole(folder / "statistics.md", lambda file: file.write(page))
    write_json(folder / "statistics.json", {**statistics, "counts": ordered})
    facts = ("documents", "sentences", "characters", "tokens", "instances", "padding_share")
    write_json(
        folder / "summary.json",
        {
            "command": "prepare",
            "output": str(work.output / HELD_OUT if side == HELD_OUT else work.output),
            **{fact: summary[fact] for fact in facts},
            "speed": speed,
        },
    )
    manifest = Manifest(
        length=work.config.max_length,
        vocabulary_size=vocabulary.size,
        tokenizer_sha256=sha256,
        special_ids=vocabulary.special_ids,
        tag_sets=work.tag_sets,
        instances=summary["instances"],
        shards=[shard for record in records for shard in record[side]["shards"]],
        counts=ordered,
        statistics=summary,
        config=work.plan.config,
        versions=_versions(work),
    )
    write_manifest(folder, manifest)


def _summarise(work: Work, side: str, records: list[Any], vocabulary: Vocabulary) -> dict[str, Any]:
    tokens = np.zeros(vocabulary.size, dtype=np.int64)
    classes: dict[str, Array] = {task: np.zeros(256, dtype=np.int64) for task in TASKS}
    for task in range(work.plan.tasks):
        with np.load(work.root / "packed" / f"{task:05d}.npz") as arrays:
            tokens += arrays[f"{side}.tokens"]
            for name in TASKS:
                classes[name] += arrays[f"{side}.{name}"]
    totals = total(record[side]["totals"] for record in records)
    names = ("documents", "sentences", "characters", "words", "instances")
    return summarise(
        {name: totals[name] for name in names},
        tokens,
        classes,
        vocabulary.special_ids,
        work.tag_sets,
    )


def _counts_of_all(work: Work, annotated: list[Any]) -> Counter[str]:
    """Return what was dropped before the documents were parted, held out or not."""
    counts = total(record["counts"] for record in annotated)
    if work.plan.empty_files:
        counts["empty file"] += work.plan.empty_files
    return counts


def _speed(annotated: list[Any], packed: list[Any]) -> dict[str, Any]:
    characters = sum(record["characters"] for record in annotated)
    speed = {}
    for stage, records in (("annotate", annotated), ("align and pack", packed)):
        seconds = sum(record["seconds"] for record in records)
        speed[stage] = {
            "seconds": round(seconds, 3),
            "characters_per_second": round(characters / max(seconds, 1e-9)),
        }
    return speed


def _move_annotations(work: Work) -> None:
    if not work.config.keep_annotations:
        return
    folder = work.corpus / ANNOTATED
    folder.mkdir(parents=True, exist_ok=True)
    for task in range(work.plan.tasks):
        source = work.annotated(task)
        if source.exists():  # else a run before this one moved it
            shutil.move(source, folder / source.name)


def _versions(work: Work) -> dict[str, str]:
    libraries = ["lert-ds", "tokenizers", "datatrove"]
    if library := _LIBRARIES.get(work.config.annotator.kind):
        libraries.append(library)
    return {library: importlib.metadata.version(library) for library in libraries}
