"""Published results of Chinese models on these tasks: facts, each with the place that states it.

    model | cmrc2018 dev | cmrc2018 test
    LERT-base | 69.2 (68.4) / 88.1 (87.9) | 73.5 (72.8) / 89.7 (89.4)

In percent, the best run and in brackets the mean, EM / F1 of reading comprehension; the digits are
those of the source. A table that is named first wins where two have a cell; they agree but for
RoBERTa-wwm-ext on ChnSentiCorp's dev set, best 94.9 in LERT's README and 95.0 in MacBERT's.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from lert_ds.finetune.tasks import TASKS


class Column(NamedTuple):
    """What a figure is of."""

    task: str
    split: str


@dataclass(frozen=True)
class Source:
    """What states figures, and how they were come by."""

    title: str
    url: str
    commit: str
    """Of the repository, at which the figures were read."""
    says: str
    """What a best and a mean are there."""


class Figure(NamedTuple):
    """A cell as it was published."""

    text: str
    source: Source


LERT = Source(
    "README of LERT", "https://github.com/ymcui/LERT", "50a7553",
    "best (mean) of several runs; of small models the best alone",
)  # fmt: skip
MACBERT = Source(
    "README of MacBERT", "https://github.com/ymcui/MacBERT", "9a72882", "best (mean) of 10 runs"
)
ELECTRA = Source(
    "README of Chinese-ELECTRA", "https://github.com/ymcui/Chinese-ELECTRA", "3765b2d",
    "best (mean) of 10 runs, or the best alone",
)  # fmt: skip
BERT_WWM = Source(
    "README of Chinese-BERT-wwm", "https://github.com/ymcui/Chinese-BERT-wwm", "f6410cb",
    "the best alone",
)  # fmt: skip
MINIRBT = Source(
    "README of MiniRBT", "https://github.com/iflytek/MiniRBT", "195c81e",
    "the mean of 3 runs or more, the best mean of 2, 3, 5 and 10 epochs",
)  # fmt: skip

_BY_THEM = ("RoBERTa-wwm-ext, run by them", "RBT3, run by them")
MODELS: dict[str, tuple[str, ...]] = {
    "Published: base models": (
        "BERT", "BERT-wwm-ext", "RoBERTa-wwm-ext", "MacBERT-base", "PERT-base", "LERT-base",
    ),
    "Published: large models": (
        "RoBERTa-wwm-ext-large", "MacBERT-large", "PERT-large", "LERT-large",
    ),
    "Published: small models": (
        "RBT3", "RBTL3", "ELECTRA-small", "ELECTRA-180g-small", "LERT-small",
    ),
    "Published: MiniRBT, and what its authors compared": (
        _BY_THEM[0], "RBT6 (KD)", _BY_THEM[1], "RBT4-H312", "MiniRBT-H256", "MiniRBT-H288",
    ),
}  # fmt: skip
"""Title of a group to its models, in the order of a table."""

TRAIN_EXAMPLES: dict[str, int] = {
    "cmrc2018": 10_142, "drcd": 26_936, "chnsenticorp": 9_600, "tnews": 53_360, "xnli": 392_702,
    "ocnli": 50_000, "lcqmc": 238_766, "bq": 100_000, "msra": 45_000, "peopledaily": 50_658,
}  # fmt: skip
"""Examples to train on, whole; docs/tasks.md says by whom (of OCNLI "roughly 50k")."""

_OF_LERT = """
model | cmrc2018 dev | cmrc2018 test
BERT | 65.5 (64.4) / 84.5 (84.0) | 70.0 (68.7) / 87.0 (86.3)
BERT-wwm-ext | 67.1 (65.6) / 85.7 (85.0) | 71.4 (70.0) / 87.7 (87.0)
RoBERTa-wwm-ext | 67.4 (66.5) / 87.2 (86.5) | 72.6 (71.4) / 89.4 (88.8)
MacBERT-base | 68.5 (67.3) / 87.9 (87.1) | 73.2 (72.4) / 89.5 (89.2)
PERT-base | 68.5 (68.1) / 87.2 (87.1) | 72.8 (72.5) / 89.2 (89.0)
LERT-base | 69.2 (68.4) / 88.1 (87.9) | 73.5 (72.8) / 89.7 (89.4)
RoBERTa-wwm-ext-large | 68.5 (67.6) / 88.4 (87.9) | 74.2 (72.4) / 90.6 (90.0)
MacBERT-large | 70.7 (68.6) / 88.9 (88.2) | 74.8 (73.2) / 90.7 (90.1)
PERT-large | 72.2 (71.0) / 89.4 (88.8) | 76.8 (75.5) / 90.7 (90.4)
LERT-large | 71.2 (70.5) / 89.5 (89.1) | 75.6 (75.1) / 90.9 (90.6)

model | chnsenticorp dev | tnews dev
BERT-wwm-ext | 95.4 (94.6) | 57.0 (56.6)
RoBERTa-wwm-ext | 94.9 (94.6) | 57.4 (56.9)
MacBERT-base | 95.2 (94.8) | 57.4 (57.1)
PERT-base | 94.0 (93.7) | 56.7 (56.1)
LERT-base | 94.9 (94.7) | 57.5 (57.1)
RoBERTa-wwm-ext-large | 95.8 (94.9) | 58.8 (58.4)
MacBERT-large | 95.7 (95.0) | 59.0 (58.8)
PERT-large | 94.5 (94.0) | 57.4 (57.2)
LERT-large | 95.6 (94.9) | 58.7 (58.5)

model | xnli dev | ocnli dev
BERT-wwm-ext | 79.4 (78.6) | 76.0 (75.3)
RoBERTa-wwm-ext | 80.0 (79.2) | 76.5 (76.0)
MacBERT-base | 80.3 (79.7) | 77.0 (76.5)
PERT-base | 78.8 (78.1) | 75.3 (74.8)
LERT-base | 80.2 (79.5) | 78.2 (77.5)
RoBERTa-wwm-ext-large | 82.1 (81.3) | 78.5 (78.2)
MacBERT-large | 82.4 (81.8) | 79.0 (78.7)
PERT-large | 81.0 (80.4) | 78.1 (77.8)
LERT-large | 81.7 (81.2) | 79.4 (78.9)

model | msra test | peopledaily dev
BERT-wwm-ext | 95.3 (94.9) | 95.3 (95.1)
RoBERTa-wwm-ext | 95.5 (95.1) | 95.1 (94.9)
MacBERT-base | 95.3 (95.1) | 95.2 (94.9)
PERT-base | 95.6 (95.3) | 95.3 (95.1)
LERT-base | 95.7 (95.4) | 95.6 (95.4)
RoBERTa-wwm-ext-large | 95.5 (95.5) | 95.7 (95.4)
MacBERT-large | 96.2 (95.9) | 95.8 (95.7)
PERT-large | 96.2 (96.0) | 96.1 (95.8)
LERT-large | 96.3 (96.0) | 96.3 (96.0)

model | cmrc2018 test | drcd test | xnli test | lcqmc test | bq test | chnsenticorp test
RBT3 | 62.2 / 81.8 | 75.0 / 83.9 | 72.3 | 85.1 | 83.3 | 92.8
ELECTRA-small | 67.8 / 83.4 | 79.0 / 85.8 | 73.1 | 85.9 | 82.0 | 94.3
ELECTRA-180g-small | 68.5 / 85.2 | 82.9 / 88.7 | 74.6 | 85.8 | 82.1 | 93.6
LERT-small | 67.8 / 85.2 | 83.2 / 89.4 | 75.2 | 85.3 | 83.4 | 94.0
"""
"""The last table calls ChnSentiCorp CSC: its figures are those of the test set elsewhere."""

_OF_MACBERT = """
model | drcd dev | drcd test
BERT | 83.1 (82.7) / 89.9 (89.6) | 82.2 (81.6) / 89.2 (88.8)
BERT-wwm-ext | 85.0 (84.5) / 91.2 (90.9) | 83.6 (83.0) / 90.4 (89.9)
RoBERTa-wwm-ext | 86.6 (85.9) / 92.5 (92.2) | 85.6 (85.2) / 92.0 (91.7)
MacBERT-base | 89.4 (89.2) / 94.3 (94.1) | 89.5 (88.7) / 93.8 (93.5)
RoBERTa-wwm-ext-large | 89.6 (89.1) / 94.8 (94.4) | 89.6 (88.9) / 94.5 (94.1)
MacBERT-large | 91.2 (90.8) / 95.6 (95.3) | 91.7 (90.9) / 95.6 (95.3)

model | xnli dev | xnli test
BERT | 77.8 (77.4) | 77.8 (77.5)
BERT-wwm-ext | 79.4 (78.6) | 78.7 (78.3)
RoBERTa-wwm-ext | 80.0 (79.2) | 78.8 (78.3)
MacBERT-base | 80.3 (79.7) | 79.3 (78.8)
RoBERTa-wwm-ext-large | 82.1 (81.3) | 81.2 (80.6)
MacBERT-large | 82.4 (81.8) | 81.3 (80.6)

model | chnsenticorp dev | chnsenticorp test
BERT | 94.7 (94.3) | 95.0 (94.7)
BERT-wwm-ext | 95.4 (94.6) | 95.3 (94.7)
RoBERTa-wwm-ext | 95.0 (94.6) | 95.6 (94.8)
MacBERT-base | 95.2 (94.8) | 95.6 (94.9)
RoBERTa-wwm-ext-large | 95.8 (94.9) | 95.8 (94.9)
MacBERT-large | 95.7 (95.0) | 95.9 (95.1)

model | lcqmc dev | lcqmc test
BERT | 89.4 (88.4) | 86.9 (86.4)
BERT-wwm-ext | 89.6 (89.2) | 87.1 (86.6)
RoBERTa-wwm-ext | 89.0 (88.7) | 86.4 (86.1)
MacBERT-base | 89.5 (89.3) | 87.0 (86.5)
RoBERTa-wwm-ext-large | 90.4 (90.0) | 87.0 (86.8)
MacBERT-large | 90.6 (90.3) | 87.6 (87.1)

model | bq dev | bq test
BERT | 86.0 (85.5) | 84.8 (84.6)
BERT-wwm-ext | 86.4 (85.5) | 85.3 (84.8)
RoBERTa-wwm-ext | 86.0 (85.4) | 85.0 (84.6)
MacBERT-base | 86.0 (85.5) | 85.2 (84.9)
RoBERTa-wwm-ext-large | 86.3 (85.7) | 85.8 (84.9)
MacBERT-large | 86.2 (85.7) | 85.6 (85.0)
"""

_OF_ELECTRA = """
model | cmrc2018 dev | cmrc2018 test
RBT3 | 57.0 / 79.0 | 62.2 / 81.8
ELECTRA-small | 63.4 (62.9) / 80.8 (80.2) | 67.8 (67.4) / 83.4 (83.0)
ELECTRA-180g-small | 63.8 / 82.7 | 68.5 / 85.2

model | drcd dev | drcd test
RBT3 | 76.3 / 84.9 | 75.0 / 83.9
ELECTRA-small | 79.8 (79.4) / 86.7 (86.4) | 79.0 (78.5) / 85.8 (85.6)
ELECTRA-180g-small | 83.5 / 89.2 | 82.9 / 88.7

model | xnli dev | xnli test
RBT3 | 72.2 | 72.3
ELECTRA-small | 73.3 (72.5) | 73.1 (72.6)
ELECTRA-180g-small | 74.6 | 74.6

model | chnsenticorp dev | chnsenticorp test
RBT3 | 92.8 | 92.8
ELECTRA-small | 92.8 (92.5) | 94.3 (93.5)
ELECTRA-180g-small | 94.1 | 93.6

model | lcqmc dev | lcqmc test
RBT3 | 85.3 | 85.1
ELECTRA-small | 86.7 (86.3) | 85.9 (85.6)
ELECTRA-180g-small | 86.6 | 85.8

model | bq dev | bq test
RBT3 | 84.1 | 83.3
ELECTRA-small | 83.5 (83.0) | 82.0 (81.7)
ELECTRA-180g-small | 83.3 | 82.1
"""

_OF_BERT_WWM = """
model | cmrc2018 test | drcd test | xnli test | chnsenticorp test | lcqmc test | bq test
RBTL3 | 63.3 / 83.4 | 77.2 / 85.6 | 74.0 | 94.2 | 85.1 | 83.6
"""

_OF_MINIRBT = """
model | cmrc2018 dev | drcd dev | ocnli dev
RoBERTa-wwm-ext, run by them | (68) / (87.3) | (89.4) / (94.4) | (76.58)
RBT6 (KD) | (64.3) / (84.4) | (84.93) / (91.27) | (72.83)
RBT3, run by them | (57.73) / (80.3) | (77.63) / (85.87) | (69.80)
RBT4-H312 | (54.93) / (77.9) | (75.07) / (84.13) | (68.50)
MiniRBT-H256 | (56.27) / (78.47) | (78.57) / (86.83) | (68.73)
MiniRBT-H288 | (58.83) / (80.53) | (78.73) / (87.1) | (68.32)

model | lcqmc dev | bq dev | tnews dev | chnsenticorp dev
RoBERTa-wwm-ext, run by them | (89.07) | (85.76) | (57.66) | (94.89)
RBT6 (KD) | (88.52) | (84.54) | (55.52) | (93.42)
RBT3, run by them | (87.3) | (84.47) | (55.39) | (93.86)
RBT4-H312 | (85.49) | (83.42) | (54.15) | (93.31)
MiniRBT-H256 | (86.81) | (83.68) | (54.45) | (92.97)
MiniRBT-H288 | (86.38) | (83.77) | (54.62) | (92.83)
"""
"""Given as F1 / EM there."""

_TABLES = (
    # ELECTRA before LERT: the same best runs, with their means.
    (ELECTRA, _OF_ELECTRA), (LERT, _OF_LERT), (MACBERT, _OF_MACBERT), (BERT_WWM, _OF_BERT_WWM),
    (MINIRBT, _OF_MINIRBT),
)  # fmt: skip


@cache
def published() -> dict[str, dict[Column, Figure]]:
    """Return model → what is asked → its figure."""
    found: dict[str, dict[Column, Figure]] = {
        model: {} for models in MODELS.values() for model in models
    }
    for source, text in _TABLES:
        columns: list[Column] = []
        for line in filter(None, text.split("\n")):
            name, *cells = (cell.strip() for cell in line.split(" | "))
            if name == "model":
                columns = [Column(*cell.split()) for cell in cells]
                assert all(column.task in TASKS for column in columns), line
                continue
            for column, cell in zip(columns, cells, strict=True):
                found[name].setdefault(column, Figure(cell, source))
    return found
