"""The tasks: what each asks, how its files are named and laid out, and what it is judged by.

Those of LERT's paper (Cui et al. 2022, arXiv 2211.05344); docs/tasks.md says where to get each.
`csc` is what the table of the small models calls ChnSentiCorp's test set: a name for the same task.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lert_ds.errors import ConfigError
from lert_ds.finetune.readers import LABEL, PAIR, TEXT, TextLayout

Kind = Literal["classification", "entities", "spans"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Task:
    """One task."""

    name: str
    title: str
    kind: Kind
    files: Mapping[Split, Sequence[str]]
    """Names of the files of a split, the first that is there; each may end in .gz too."""
    labels: Sequence[str] = ()
    """Classes, or tags of entities, in the order of their numbers."""
    layout: TextLayout | None = None
    """Of a classification task."""
    aliases: Sequence[str] = ()
    """Other names."""

    @property
    def score(self) -> str:
        """The metric that the best of a run is chosen by."""
        return {"classification": "accuracy", "entities": "f1", "spans": "average"}[self.kind]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that tables show."""
        return {"classification": ("accuracy",), "entities": ("f1",), "spans": ("em", "f1")}[
            self.kind
        ]


def _single(
    text: Sequence[str] = ("text_a", "sentence", "text"),
    label: Sequence[str] = ("label",),
    order: Sequence[str] = (LABEL, TEXT),
) -> TextLayout:
    return TextLayout({TEXT: text, LABEL: label}, order)


_PAIRS = {
    TEXT: ("sentence1", "text_a", "premise", "text1"),
    PAIR: ("sentence2", "text_b", "hypo", "hypothesis", "text2"),
    LABEL: ("gold_label", "label"),
}
_INFERENCE = ("entailment", "neutral", "contradiction")
_ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
_TABLES: dict[Split, Sequence[str]] = {
    split: tuple(f"{split}.{suffix}" for suffix in ("tsv", "txt", "csv", "json"))
    for split in SPLITS
}
_LISTS: dict[Split, Sequence[str]] = {
    "train": ("train.txt", "train.char.bmes", "example.train"),
    "dev": ("dev.txt", "example.dev"),
    "test": ("test.txt", "example.test"),
}

_ALL = (
    Task(
        "cmrc2018",
        "CMRC 2018",
        "spans",
        {
            "train": ("cmrc2018_train.json", "train.json"),
            "dev": ("cmrc2018_dev.json", "dev.json"),
            "test": ("cmrc2018_test.json", "test.json"),
        },
    ),
    Task(
        "drcd",
        "DRCD",
        "spans",
        {
            "train": ("DRCD_training.json", "train.json"),
            "dev": ("DRCD_dev.json", "dev.json"),
            "test": ("DRCD_test.json", "test.json"),
        },
    ),
    Task(
        "chnsenticorp",
        "ChnSentiCorp",
        "classification",
        _TABLES,
        ("0", "1"),
        _single(),
        aliases=("csc",),
    ),
    Task(
        "tnews",
        "TNEWS",
        "classification",
        {"train": ("train.json",), "dev": ("dev.json",), "test": ()},  # its test has no labels
        # CLUE's labels.json; 105 and 111 do not occur.
        tuple("100 101 102 103 104 106 107 108 109 110 112 113 114 115 116".split()),
        _single(),
    ),
    Task(
        "xnli",
        "XNLI",
        "classification",
        {
            "train": ("multinli.train.zh.tsv", "train.tsv"),
            "dev": ("xnli.dev.tsv", "dev.tsv"),
            "test": ("xnli.test.tsv", "test.tsv"),
        },
        _INFERENCE,
        # The translated training file spells the third label otherwise.
        TextLayout(_PAIRS, (TEXT, PAIR, LABEL), {"contradictory": "contradiction"}, language="zh"),
    ),
    Task(
        "ocnli",
        "OCNLI",
        "classification",
        {
            "train": ("train.50k.json", "train.json", "train.3k.json"),
            "dev": ("dev.json",),
            "test": (),  # its test has no labels
        },
        _INFERENCE,
        TextLayout({**_PAIRS, LABEL: ("label",)}, (TEXT, PAIR, LABEL), undecided="-"),
    ),
    Task(
        "lcqmc",
        "LCQMC",
        "classification",
        _TABLES,
        ("0", "1"),
        TextLayout(_PAIRS, (TEXT, PAIR, LABEL)),
    ),
    Task(
        "bq",
        "BQ Corpus",
        "classification",
        _TABLES,
        ("0", "1"),
        TextLayout(_PAIRS, (TEXT, PAIR, LABEL)),
    ),
    Task("msra", "MSRA-NER", "entities", _LISTS, _ENTITIES, aliases=("msra-ner",)),
    Task("peopledaily", "People's Daily", "entities", _LISTS, _ENTITIES, aliases=("pd",)),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""Name to task, in the order of the paper's tables."""
_BY_ANY_NAME = {**{alias: task for task in _ALL for alias in task.aliases}, **TASKS}


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    if name in _BY_ANY_NAME:
        return _BY_ANY_NAME[name]
    near = difflib.get_close_matches(name, _BY_ANY_NAME, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"{name}: no such task{hint}; there are {', '.join(TASKS)}")
