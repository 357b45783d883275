"""A small vocabulary, a fast annotator, and preparations in temporary folders."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lert_ds.config import parse
from lert_ds.corpus import annotate
from lert_ds.corpus.plan import make_plan
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.settings import PrepareConfig
from lert_ds.corpus.text import split_sentences
from lert_ds.corpus.vocabulary import Vocabulary, load_tokenizer
from lert_ds.corpus.work import Work
from lert_ds.labels import LTP_TAGS
from lert_ds.prepare import _begin

PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"我爱北京天安门。，！今气很好的一二三春夏秋冬来了他说：“”《》是人在山水",
    *"0123456789abcdefghijklmnopqrstuvwxyz.'-()[]",
    *(f"##{character}" for character in "0123456789abcdefghijklmnopqrstuvwxyz"),
    *("git", "##hub", "hello", "don", "2023", "cafe", "##１", "ａ", "##ｂ"),
]


class Pairs:
    """Annotates every two characters as a word: n, or wp at a mark."""

    def __init__(self) -> None:
        self.tag_sets = LTP_TAGS
        self.counts: Counter[str] = Counter()

    def sentences(self, text: str) -> list[str]:
        return split_sentences(text, 510)

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        for number, text in sentences:
            words = [
                word
                for part in text.split()
                for word in (part[place : place + 2] for place in range(0, len(part), 2))
            ]
            pos: list[str | None] = ["wp" if word[0] in "。，" else "n" for word in words]
            ner: list[str | None] = ["O"] * len(words)
            yield AnnotatedSentence(text, words, pos, ner, None, number)


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    path = tmp_path / "pieces" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(PIECES) + "\n", "utf-8")
    return path


@pytest.fixture
def vocabulary(vocabulary_file: Path) -> Vocabulary:
    return load_tokenizer(str(vocabulary_file))


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `annotator.kind = jieba` the annotator `Pairs`, in this process."""
    table = {**annotate.ANNOTATORS, "jieba": lambda config, tag_sets: Pairs()}
    monkeypatch.setattr(annotate, "ANNOTATORS", table)


@pytest.fixture
def make_config(tmp_path: Path, vocabulary_file: Path) -> Callable[..., PrepareConfig]:
    """Return what makes a configuration: keys as in TOML, the input is what is named `input`."""

    def make(**keys: Any) -> PrepareConfig:
        tree = {
            "output": str(tmp_path / "corpus"),
            "tokenizer": str(vocabulary_file),
            "max_length": 16,
            "executor": {"workers": 1},
            **keys,
        }
        return parse(PrepareConfig, tree, "test")

    return make


@pytest.fixture
def make_work(make_config: Callable[..., PrepareConfig]) -> Callable[..., Work]:
    """Return what makes a work folder ready for its first stage."""

    def make(**keys: Any) -> Work:
        config = make_config(**keys)
        work = Work(config.work)
        work.root.mkdir(parents=True)
        _begin(work, config, make_plan(config))
        return work

    return make
