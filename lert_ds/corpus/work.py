"""The work folder of a preparation: what the stages hand to each other, and to the next attempt.

OUTPUT.work/
  plan.json  lock               what is to be done; who is doing it
  logs/STAGE/                   datatrove's logs, and which tasks are completed
  done/STAGE/                   what each of them has written, by hash: see outputs.py
  tokenizer/  tag_sets.json     ready before the first sentence is annotated
  pieces/ tags/ signatures/ duplicates/      of the stages that some configurations need
  annotated/00000.jsonl.zst  00000.json      sentences of a task, and its record
  divide.json                   which documents are held out
  corpus/  packed/00000.json    the corpus as it grows, and the records of its tasks
  finished                      the corpus is complete; what is left is to move it to OUTPUT
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lert_ds import config
from lert_ds.corpus.plan import Plan, load_plan
from lert_ds.corpus.settings import PrepareConfig
from lert_ds.files import replace_folder, write_json, write_whole

FINISHED = "finished"


@dataclass(frozen=True)
class Work:
    """A work folder."""

    root: Path

    @cached_property
    def plan(self) -> Plan:
        """The plan."""
        return load_plan(self.root)

    @cached_property
    def config(self) -> PrepareConfig:
        """The configuration of the plan; where and how the tasks run is not in it."""
        tree = {**self.plan.config, "output": str(self.output)}
        return config.parse(PrepareConfig, tree, str(self.root))

    @property
    def output(self) -> Path:
        """The corpus folder to be."""
        return self.root.with_name(self.root.name.removesuffix(".work"))

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer's files."""
        return self.root / "tokenizer"

    @property
    def corpus(self) -> Path:
        """The corpus as it grows."""
        return self.root / "corpus"

    @cached_property
    def tag_sets(self) -> dict[str, list[str]]:
        """The tags of every task."""
        tag_sets: dict[str, list[str]] = self.read("tag_sets.json")
        return tag_sets

    def annotated(self, task: int) -> Path:
        """Return the file of a task's annotated sentences."""
        return self.root / "annotated" / f"{task:05d}.jsonl.zst"

    def read(self, name: str) -> Any:
        """Return the JSON that a file holds."""
        return json.loads((self.root / name).read_text("utf-8"))

    def write(self, name: str, tree: Any) -> None:
        """Write JSON to a file, whole."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, tree, exact=True)

    def records(self, stage: str) -> Iterator[Any]:
        """Yield what each task of a stage recorded, in the order of the plan."""
        for task in range(self.plan.tasks):
            yield self.read(f"{stage}/{task:05d}.json")

    def record(self, stage: str, task: int, tree: Any) -> None:
        """Write what a task has to say; this comes last in it."""
        self.write(f"{stage}/{task:05d}.json", tree)

    @property
    def finished(self) -> bool:
        """Whether the corpus is complete, moved to its place or not."""
        return (self.root / FINISHED).exists()

    def install(self) -> None:
        """Move the complete corpus to its place, in one rename; what was there is removed."""
        if not self.finished:
            write_whole(self.root / FINISHED, lambda file: file.write(b""))
        if self.corpus.exists():
            replace_folder(self.corpus, self.output)
        for name in ("corpus", "annotated", "signatures", "duplicates", "pieces", "packed"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def reopen(self) -> None:
        """Take back that the corpus is complete: part of it was damaged before it was moved."""
        (self.root / FINISHED).unlink(missing_ok=True)


def total(counters: Iterator[dict[str, int]]) -> Counter[str]:
    """Return the sum of counts."""
    result: Counter[str] = Counter()
    for counter in counters:
        result.update(counter)
    return result
