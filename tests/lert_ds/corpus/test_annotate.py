import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lert_ds.config import parse
from lert_ds.corpus import annotate
from lert_ds.corpus.annotate import (
    ANNOTATORS,
    AnnotatorConfig,
    collect_tag_sets,
    make_annotator,
    resolve_tag_sets,
)
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.errors import ConfigError, CorpusError
from lert_ds.labels import LTP_TAGS, TagSets


class Fixed:
    """An annotator that gives what it was made with."""

    def __init__(self, *sentences: AnnotatedSentence) -> None:
        self.tag_sets: TagSets = {}
        self.counts: Counter[str] = Counter()
        self._sentences = sentences

    def sentences(self, text: str) -> list[str]:
        return [text]

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        yield from self._sentences


def make_fixed(monkeypatch: pytest.MonkeyPatch, *sentences: AnnotatedSentence) -> None:
    monkeypatch.setitem(
        annotate.ANNOTATORS,  # type: ignore[arg-type]
        "precomputed",
        lambda config, tag_sets: Fixed(*sentences),
    )


def test_tags_outside_the_lists_are_ignored_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    good = AnnotatedSentence(text="他", words=["他"], pos=["r"], ner=["O"], dep=[None])
    bad = AnnotatedSentence(
        text="他来", words=["他", "来"], pos=["PRON", "v"], dep=["x", "y"], doc=2
    )
    make_fixed(monkeypatch, good, bad)
    annotator = make_annotator(AnnotatorConfig(kind="precomputed"), LTP_TAGS)
    first, second = annotator.annotate([])
    assert first is good
    assert second.pos == [None, "v"]
    assert second.dep == [None, None]
    assert second.ner is None
    assert (second.text, second.words, second.doc) == ("他来", ["他", "来"], 2)
    assert annotator.counts == {"pos tag outside the list": 1, "dep tag outside the list": 2}
    assert annotator.tag_sets == LTP_TAGS


def test_tags_are_collected_by_frequency_then_name(monkeypatch: pytest.MonkeyPatch) -> None:
    make_fixed(
        monkeypatch,
        AnnotatedSentence(text="abc", words=[*"abc"], pos=["v", "n", "n"], dep=["b", "a", None]),
    )
    config = AnnotatorConfig(kind="precomputed", tag_sets="collect")
    expected = {"pos": ["n", "v"], "ner": [], "dep": ["a", "b"]}
    assert collect_tag_sets(config, ["text", "text"]) == expected
    assert resolve_tag_sets(config, ["text"]) == expected


def test_too_many_tags_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(number) for number in range(256)]
    make_fixed(monkeypatch, AnnotatedSentence(text=" ".join(words), words=words, pos=words))
    with pytest.raises(CorpusError, match="256 different pos tags, 255 at most fit"):
        collect_tag_sets(AnnotatorConfig(kind="precomputed", tag_sets="collect"), ["text"])


def test_named_tag_sets_read_no_text() -> None:
    assert resolve_tag_sets(AnnotatorConfig(), []) == {k: list(v) for k, v in LTP_TAGS.items()}
    own = {"pos": ["N", "V"], "ner": [], "dep": ["root"]}
    assert resolve_tag_sets(AnnotatorConfig(kind="conllu", tag_sets=own), []) == own


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "ltp"}, "kind = 'ltp' needs model"),
        ({"kind": "ltp", "model": "m", "longest_sentence": 900}, "longest_sentence = 900"),
        ({"kind": "jieba", "model": "LTP/base"}, "model = 'LTP/base' is for kind = 'ltp'"),
        ({"kind": "conllu", "user_dictionary": "w.txt"}, "user_dictionary = 'w.txt' is for kind"),
        ({"tag_sets": "collect"}, "tag_sets = 'collect' is for annotated input"),
        ({"tag_sets": {"pos": ["n"]}}, "tag_sets has pos: give a list each of pos, ner, dep"),
        ({"tag_sets": {"pos": ["n", "n"], "ner": [], "dep": []}}, "tag_sets.pos names 'n' twice"),
        ({"kind": "stanza"}, "kind = 'stanza': .*'jieba', 'ltp', 'conllu' or 'precomputed'"),
        ({"kinds": "ltp"}, r"unknown key kinds \(did you mean kind\?\)"),
        ({"tokens_per_batch": 10}, "tokens_per_batch = 10"),
        ({"device": "gpu"}, "device = 'gpu'"),
    ],
)
def test_a_bad_configuration_is_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(AnnotatorConfig, tree, "annotator")


def test_a_configuration_of_each_kind_is_taken() -> None:
    trees: list[dict[str, object]] = [
        {},
        {"kind": "ltp", "model": "LTP/base", "device": "cuda:1"},
        {"kind": "conllu", "tag_sets": "collect", "pos_column": "upos", "strip_subtypes": True},
        {"kind": "precomputed"},
        {"user_dictionary": "words.txt"},
    ]
    configs = [parse(AnnotatorConfig, tree, "annotator") for tree in trees]
    assert {config.kind for config in configs} == set(ANNOTATORS)
    assert configs[-1].user_dictionary == Path("words.txt")


def test_no_annotator_is_imported_before_it_is_made() -> None:
    code = (
        "import sys, lert_ds.corpus.annotate as a; "
        "assert not {'jieba', 'ltp', 'torch'} & set(sys.modules); "
        "c = a.AnnotatorConfig(); s = a.make_annotator(c, a.resolve_tag_sets(c, [])); "
        "assert 'jieba' in sys.modules and not {'ltp', 'torch'} & set(sys.modules); "
        "print(*next(s.annotate([(0, '我们来了。')])).words)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["我们", "来", "了", "。"]
