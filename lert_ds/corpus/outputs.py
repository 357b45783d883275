"""What each task of a preparation has written, by hash: what a run that goes on may rely on.

datatrove marks a completed task with an empty file. Since then a disk may have lost the end of what
the task wrote, or a person changed it: such a task is done again, and writes the same bytes.

    done/STAGE/00000.json     {"annotated/00000.json": [bytes, SHA-256], …}
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lert_ds.corpus.work import Work
from lert_ds.files import sha256_of

log = logging.getLogger(__name__)

DONE = "done"
BEGIN, FINISH = "begin", "finish"
_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    BEGIN: ("plan.json", "tokenizer/*", "tag_sets.json"),
    "pieces": ("pieces/{}.json",),
    "learn": ("tokenizer/*",),
    "tags": ("tags/{}.json",),
    "rank": ("tag_sets.json",),
    "sign": ("signed/{}.json", "signatures/{}-*"),
    "compare": ("duplicates/{}.*",),
    "annotate": ("annotated/{}.json", "annotated/{}.jsonl.zst"),
    "divide": ("divide.json",),
    "assemble": ("packed/{}.*", "corpus/shards/{}-*", "corpus/held_out/shards/{}-*"),
    FINISH: ("corpus/*", "corpus/held_out/*"),
}
"""Stage to what it writes; {} is the number of the task."""
_MOVED = "corpus"
"""Where annotations that are kept are moved to at the end."""


def record(work: Work, stage: str, task: int = 0) -> None:
    """Write down what a task has written; it is done from now on."""
    files = {str(path.relative_to(work.root)): _facts(path) for path in _outputs(work, stage, task)}
    work.write(f"{DONE}/{stage}/{task:05d}.json", files)


def damaged(work: Work, stage: str, task: int = 0) -> str | None:
    """Return the first file of a task that is not as it was recorded, None where all are."""
    try:
        files: Any = work.read(f"{DONE}/{stage}/{task:05d}.json")
        # What is not recorded is none of the task's: a pattern of its may find other files later.
        return next((name for name, facts in files.items() if not _is(work, name, facts)), None)
    except (OSError, ValueError, AttributeError):
        return f"{DONE}/{stage}/{task:05d}.json"


def is_installed(work: Work) -> bool:
    """Return whether the output folder is the corpus that this work has completed."""
    try:
        files: Any = work.read(f"{DONE}/{FINISH}/00000.json")
        own = {name.removeprefix(f"{_MOVED}/"): facts for name, facts in files.items()}
    except (OSError, ValueError, AttributeError):
        return False
    places = ((work.output / name, facts) for name, facts in own.items())
    return bool(own) and all(path.is_file() and _facts(path) == facts for path, facts in places)


def forget_damaged(work: Work, stages: Iterable[str]) -> int:
    """Let the tasks whose files are not as they were be done again; return how many there are."""
    forgotten = 0
    for stage in stages:
        for mark in sorted((work.root / "logs" / stage / "completions").glob("*")):
            if (name := damaged(work, stage, int(mark.name))) is not None:
                log.warning("%s: it is not as it was written; it is made again", work.root / name)
                mark.unlink()
                forgotten += 1
    return forgotten


def _outputs(work: Work, stage: str, task: int) -> Iterator[Path]:
    for pattern in _OUTPUTS[stage]:
        for path in sorted(work.root.glob(pattern.format(f"{task:05d}"))):
            if path.is_file() and not path.name.startswith("."):
                yield path


def _is(work: Work, name: str, facts: Any) -> bool:
    for path in (work.root / name, work.root / _MOVED / name):
        if path.is_file():
            return bool(facts == _facts(path))
    return False


def _facts(path: Path) -> list[int | str]:
    return [path.stat().st_size, sha256_of(path)]
