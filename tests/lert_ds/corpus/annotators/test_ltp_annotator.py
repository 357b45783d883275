import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lert_ds.corpus.annotate import AnnotatorConfig, make_annotator
from lert_ds.corpus.annotators import ltp_annotator
from lert_ds.corpus.annotators.ltp_annotator import (
    LtpAnnotator,
    find_parse_problem,
    place_words,
)
from lert_ds.corpus.annotators.ltp_models import Parsed
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import is_blank, locate_words
from lert_ds.labels import LTP_TAGS, TASKS

ODD_TEXTS = [
    "今天天气很好。他去了，我没有去！",
    "",
    " \n\t\u200b\n",
    "  前面有空格，后面也有  \r\n",
    "Hello world, 2023年3.14％ U.S. https://a.b/c?x=1",
    "👨‍👩‍👧‍👦🇨🇳❤️表情",
    "\u0301e\u0301\u0301 组合",
    "\ue000\ue001",  # private use: no pieces at all
    "한국어 안녕하세요 " * 20,
    "𠀀𪚥𫝀生僻字",
    "长" * 530,
    "w" * 530,
    "\x00\x01控制\x7f",
    "a\u00a0b\u3000c",
]


class FakeModel:
    """A model that parses into characters, and fails when a batch is too large."""

    longest = 20

    def __init__(self, memory: int = 10**9) -> None:
        self.memory = memory
        self.batches: list[list[str]] = []

    def count_tokens(self, sentences: Sequence[str]) -> list[int]:
        return [len(text) for text in sentences]

    def parse(self, sentences: Sequence[str]) -> list[Parsed]:
        self.batches.append(list(sentences))
        if sum(map(len, sentences)) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [
            Parsed(
                words=list(text),
                pos=["n"] * len(text),
                ner=["O"] * len(text),
                heads=list(range(len(text))),
                relations=["HED"] + ["ATT"] * (len(text) - 1),
            )
            for text in sentences
        ]


def with_model(monkeypatch: pytest.MonkeyPatch, model: FakeModel, tokens: int) -> LtpAnnotator:
    monkeypatch.setattr(ltp_annotator, "load_ltp", lambda *_: model)
    return LtpAnnotator("fake", tokens_per_batch=tokens)


def check(sentence: AnnotatedSentence) -> None:
    """Hold a sentence to what every annotator promises."""
    assert locate_words(sentence.text, sentence.words) is not None
    for task in TASKS:
        tags = getattr(sentence, task)
        assert tags is None or len(tags) == len(sentence.words)


@pytest.mark.parametrize("kind", ["neural_folder", "perceptron_folder"])
def test_odd_text_is_never_lost(kind: str, request: pytest.FixtureRequest) -> None:
    annotator = LtpAnnotator(str(request.getfixturevalue(kind)), device="cpu")
    for number, text in enumerate(ODD_TEXTS):
        pieces = annotator.sentences(text)
        assert "".join(pieces) == text
        annotated = list(annotator.annotate((number, piece) for piece in pieces))
        assert [sentence.text for sentence in annotated] == pieces
        for sentence in annotated:
            check(sentence)
            assert sentence.doc == number
            assert bool(sentence.words) != is_blank(sentence.text)
    assert set(annotator.counts) <= {
        "parse with several roots: no dependencies",
        "words that do not stand in the sentence: words without tags",
    }


def test_no_piece_is_longer_than_the_model_takes(neural_folder: Path) -> None:
    annotator = LtpAnnotator(str(neural_folder), device="cpu")
    pieces = annotator.sentences("한국어 안녕 " * 200 + "长" * 1300)
    assert max(annotator._model.count_tokens(pieces)) <= 510
    assert max(annotator._model.count_tokens(pieces)) > 400


def test_all_four_tasks_come_out_in_the_order_of_the_input(neural_folder: Path) -> None:
    annotator = LtpAnnotator(str(neural_folder), device="cpu", tokens_per_batch=60)
    texts = ["他去了北京。" * (1 + number * 7 % 5) for number in range(40)]
    annotated = list(annotator.annotate(enumerate(texts)))
    assert [sentence.doc for sentence in annotated] == list(range(40))
    assert [sentence.text for sentence in annotated] == texts
    for sentence in annotated:
        check(sentence)
        assert sentence.pos is not None
        assert sentence.ner is not None
        assert sentence.dep is not None
    alone = [next(annotator.annotate([(number, text)])) for number, text in enumerate(texts)]
    assert alone == annotated


def test_perceptrons_offer_no_dependencies(perceptron_folder: Path) -> None:
    config = AnnotatorConfig(kind="ltp", model=str(perceptron_folder), device="cpu")
    annotator = make_annotator(config, LTP_TAGS)
    (sentence,) = annotator.annotate([(3, "  他在北京工作。\n")])
    assert sentence.words == ["他", "在", "北京", "工作", "。"]
    assert sentence.pos == ["r", "p", "ns", "v", "wp"]
    assert sentence.ner == ["O", "O", "S-Ns", "O", "O"]
    assert sentence.dep is None
    assert not annotator.counts


def test_a_relation_outside_the_list_is_ignored_and_counted(
    neural_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(neural_folder, tmp_path / "model"))
    weights = torch.load(folder / "pytorch_model.bin")
    # Make every relation `IS`, which LTP has and LERT has not.
    for name in [name for name in weights if "dep.rel_atten" in name]:
        weights[name].zero_()
        weights[name][13] = 1.0
    for name in [name for name in weights if "dep.mlp_rel" in name]:
        weights[name].fill_(0.1)
    torch.save(weights, folder / "pytorch_model.bin")
    config = AnnotatorConfig(kind="ltp", model=str(folder), device="cpu")
    annotator = make_annotator(config, LTP_TAGS)
    annotated = list(annotator.annotate([(0, "他来。"), (0, "好")]))
    relations = [relation for sentence in annotated for relation in sentence.dep or []]
    assert relations
    assert set(relations) == {None}
    several = annotator.counts["parse with several roots: no dependencies"]
    assert annotator.counts["dep tag outside the list"] > 0
    assert several <= 1


def test_batches_are_sorted_and_stay_under_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    annotator = with_model(monkeypatch, model, tokens=50)
    texts = ["字" * (1 + number * 11 % 19) for number in range(30)]
    annotated = list(annotator.annotate((0, text) for text in texts))
    assert [sentence.text for sentence in annotated] == texts
    for batch in model.batches:
        assert len(batch) * (max(map(len, batch)) + 2) <= 50
    assert len(model.batches) < 15
    assert sum(map(len, model.batches)) == 30


def test_input_is_read_ahead_but_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    annotator = with_model(monkeypatch, FakeModel(), tokens=50)
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield 0, "字字字"

    next(annotator.annotate(endless()))  # type: ignore[arg-type]
    assert 100 <= read <= 200


def test_a_batch_that_memory_does_not_hold_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(memory=30)
    annotator = with_model(monkeypatch, model, tokens=400)
    texts = ["字" * 8] * 40
    annotated = list(annotator.annotate(enumerate(texts)))
    assert [sentence.words for sentence in annotated] == [["字"] * 8] * 40
    assert [sentence.pos for sentence in annotated] == [["n"] * 8] * 40
    assert not annotator.counts
    # 40 sentences, then 20, 10, 5, then 2 at a time: what failed is not tried at that size again.
    assert list(map(len, model.batches)) == [40, 20, 10, 5, *[2] * 20]


def test_a_sentence_that_memory_never_holds_keeps_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    annotator = with_model(monkeypatch, FakeModel(memory=10), tokens=400)
    annotated = list(annotator.annotate([(0, "短"), (1, "太长的 sentence"), (2, "好")]))
    assert [sentence.words for sentence in annotated] == [
        ["短"],
        ["太", "长", "的", "sentence"],
        ["好"],
    ]
    assert annotated[1].pos is None
    assert annotated[1].dep is None
    assert annotated[2].pos == ["n"]
    assert annotator.counts == {"sentence that memory does not hold: words without tags": 1}


def test_other_failures_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    annotator = with_model(monkeypatch, model, tokens=400)
    monkeypatch.setattr(model, "parse", lambda _: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match"):
        list(annotator.annotate([(0, "字")]))


def test_a_sentence_longer_than_the_model_takes_keeps_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    annotator = with_model(monkeypatch, FakeModel(), tokens=400)
    (sentence,) = annotator.annotate([(0, "字" * 21)])
    assert sentence.words == ["字"] * 21
    assert sentence.pos is None
    assert annotator.counts == {"sentence longer than the model takes: words without tags": 1}


def test_an_invalid_parse_loses_its_labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    annotator = with_model(monkeypatch, model, tokens=400)
    broken = {"两根": [0, 0], "循环": [2, 1], "好": [0]}

    def parse(sentences: Sequence[str]) -> list[Parsed]:
        size = [len(text) for text in sentences]
        return [
            Parsed(list(text), ["n"] * n, None, broken[text], ["ATT"] * n)
            for text, n in zip(sentences, size, strict=True)
        ]

    monkeypatch.setattr(model, "parse", parse)
    annotated = list(annotator.annotate((0, text) for text in broken))
    assert [sentence.dep for sentence in annotated] == [[None, None], [None, None], ["ATT"]]
    assert [sentence.pos for sentence in annotated] == [["n", "n"], ["n", "n"], ["n"]]
    assert annotator.counts == {
        "parse with several roots: no dependencies": 1,
        "parse with no root: no dependencies": 1,
    }


@pytest.mark.parametrize(
    ("heads", "problem"),
    [
        ([0], None),
        ([2, 0, 2, 3], None),
        ([0, 0], "several roots"),
        ([2, 1], "no root"),
        ([0, 3, 2], "a cycle"),
        ([0, 2], "a cycle"),
        ([0, 3], "a head outside the sentence"),
        ([0, -1], "a head outside the sentence"),
        ([*range(5000)], None),
    ],
)
def test_a_parse_is_a_tree_with_one_root(heads: list[int], problem: str | None) -> None:
    assert find_parse_problem(heads) == problem


def test_words_are_placed_as_they_stand() -> None:
    assert place_words(" 他 在\t北京 ", ["他 ", "在\t", "北京 "]) == [
        (0, "他"),
        (1, "在"),
        (2, "北京"),
    ]
    assert place_words("\u0301他好", ["他", "好"]) == [(0, "\u0301他"), (1, "好")]
    assert place_words("他\u200b", ["他", "\u200b"]) == [(0, "他")]
    assert place_words("他好\ue000", ["他", "好"]) == [(0, "他"), (1, "好\ue000")]
    assert place_words("他好", ["好", "他"]) is None
    assert place_words("他好", []) is None


@pytest.mark.parametrize(
    ("device", "has_gpu", "tokens"),
    [("auto", False, 1024), ("auto", True, 16_384), ("cpu", True, 1024), ("cuda:1", True, 16_384)],
)
def test_batches_are_as_large_as_the_device_likes(
    monkeypatch: pytest.MonkeyPatch, device: str, has_gpu: bool, tokens: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    model = FakeModel()
    monkeypatch.setattr(ltp_annotator, "load_ltp", lambda *_: model)
    annotator = LtpAnnotator("fake", device=device)
    sentences = [(0, "字" * 18)] * 3000
    list(annotator.annotate(sentences))
    largest = max(len(batch) for batch in model.batches) * 20
    assert tokens / 2 < largest <= tokens
