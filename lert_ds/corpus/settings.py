"""What `lert-ds prepare` is told: the configuration of a corpus."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lert_ds import config
from lert_ds.config import Config, Paths
from lert_ds.corpus.annotate import AnnotatorConfig

LEARN = "train"
"""Name of the tokenizer that is learnt from the corpus."""

MACHINE_KEYS = ("executor", "overwrite", "output")
"""Keys that say where and how, not what: the corpus is the same bytes whatever they are."""


class ExecutorConfig(Config):
    """Where the tasks run."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """local: processes of this machine; slurm: job arrays, submitted and left; ray: its cluster."""
    workers: int = Field(0, ge=0)
    """Tasks at a time; 0: one a processor core here, no limit on a cluster."""
    partition: str = ""
    """Slurm's partition."""
    time: str = "24:00:00"
    """Slurm's time limit of a task."""
    cpus_per_task: int = Field(1, ge=1)
    """Processor cores of a task."""
    mem_per_cpu_gb: int = Field(2, ge=1)
    """Memory a core; a task stays below 1 GB, beside what the annotator's model takes."""
    gpus_per_task: int = Field(0, ge=0)
    """GPUs of a task on a cluster; only the annotator uses them."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """More arguments for datatrove's executor, such as env_command or sbatch_args."""

    @model_validator(mode="after")
    def _check(self) -> "ExecutorConfig":
        if self.kind == "slurm" and not self.partition:
            raise ValueError(
                'partition is missing; kind = "slurm" needs the partition to submit to'
            )
        return self

    def tasks_at_once(self, tasks: int) -> int:
        """Return how many of `tasks` run together on this machine."""
        return max(1, min(tasks, self.workers or len(os.sched_getaffinity(0))))


class PrepareConfig(Config):
    """Raw text to a corpus folder."""

    input: Annotated[Paths, Field(min_length=1)]
    """Files, folders or globs of .txt, .jsonl, .parquet (.conllu for that annotator), each plain,
    .gz or .zst; samples:NAME is a text shipped with the package."""
    output: Annotated[Path, Field(strict=False)]
    """Corpus folder to write; OUTPUT.work beside it holds what an interrupted run has finished."""
    overwrite: bool = False
    """Replace a finished corpus, and throw away the work of another configuration."""

    text_key: str = "text"
    """Key or column of the text in .jsonl and .parquet."""
    documents: Literal["blank_lines", "lines"] = "blank_lines"
    """Where documents of .txt end: at blank_lines, or at the end of all lines."""
    document_characters: int = Field(20_000, ge=100)
    """A longer document is cut at the end of a paragraph, which bounds memory."""
    on_bad_text: Literal["refuse", "drop"] = "refuse"
    """Lines that are not UTF-8, not JSON or without text: stop, or drop and count them."""
    filters: tuple[dict[str, Any], ...] = ()
    """datatrove's document filters, in order: {name = "GopherQualityFilter", min_doc_words = 9}."""
    deduplicate: Literal["none", "exact"] = "none"
    """exact: of sentences that are the same but for white space only the first is kept."""

    annotator: AnnotatorConfig = AnnotatorConfig()
    """Who cuts and tags the words."""
    keep_annotations: bool = False
    """Keep the annotated sentences in OUTPUT/annotated, for annotator.kind=precomputed."""

    tokenizer: str = "hfl/chinese-lert-large"
    """Model or corpus folder, hub name, vocab.txt, or "train": learnt from this corpus."""
    vocabulary_size: int = Field(21_128, ge=100, le=65_535)
    """Most pieces that tokenizer = "train" learns; the default is Chinese BERT's."""
    vocabulary_minimum_frequency: int = Field(2, ge=1)
    """Rarer characters and pieces are not learnt and become [UNK]."""
    vocabulary_characters: int = Field(50_000_000, ge=1)
    """About so many characters, from documents drawn evenly, are learnt from."""

    max_length: int = Field(512, ge=8)
    """Tokens an instance, [CLS] and [SEP] included."""
    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of the documents kept apart for evaluation, in OUTPUT/held_out."""

    split_megabytes: float = Field(32.0, gt=0)
    """Most of a file that one task reads; small inputs are cut finer, so all cores have work."""
    executor: ExecutorConfig = ExecutorConfig()
    """Where the tasks run."""

    @model_validator(mode="after")
    def _check(self) -> "PrepareConfig":
        if self.filters and self.annotated:
            raise ValueError(
                f"filters are for plain text, annotator.kind = {self.annotator.kind!r} reads "
                "annotated sentences: remove one of them"
            )
        return self

    @property
    def work(self) -> Path:
        """The folder of what an interrupted run has finished."""
        output = self.output.absolute()
        return output.with_name(f"{output.name}.work")

    @property
    def annotated(self) -> bool:
        """Whether the input is annotated already."""
        return self.annotator.kind in ("conllu", "precomputed")

    @property
    def formats(self) -> tuple[str, ...]:
        """Endings of the files that the annotator takes."""
        special = {"conllu": ("conllu",), "precomputed": ("jsonl", "parquet")}
        return special.get(self.annotator.kind, ("txt", "jsonl", "parquet"))

    def of_the_corpus(self) -> dict[str, Any]:
        """Return the resolved configuration without the keys that change no byte of the corpus."""
        tree = config.dump(self)
        return {key: value for key, value in tree.items() if key not in MACHINE_KEYS}
