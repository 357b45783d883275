import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.errors import UserError
from lert_ds.finetune import readers
from lert_ds.finetune.examples import Answer, EntityExample, SpanExample, TextExample
from lert_ds.finetune.readers import TextLayout
from lert_ds.finetune.tasks import TASKS, find_task

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file: name, content."""

    def make(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, "utf-8")
        return path

    return make


def read(name: str, path: Path) -> list[TextExample]:
    """Read a file of a classification task."""
    task = find_task(name)
    assert isinstance(task.layout, TextLayout)
    return readers.read_texts(path, task.labels, task.layout)


def test_of_a_file_of_many_languages_ours_is_read(write: Write) -> None:
    header = "language\tgold_label\tsentence1\tsentence2\n"
    lines = "en\tneutral\ta\tb\nzh\tcontradiction\t甲\t乙\nar\tentailment\tc\td\n"
    found = read("xnli", write("xnli.dev.tsv", header + lines))
    assert found == [TextExample("甲", "乙", 2)]


def test_a_label_that_is_spelt_otherwise(write: Write) -> None:
    content = "premise\thypo\tlabel\n甲\t乙\tcontradictory\n丙\t丁\tentailment\n"
    found = read("xnli", write("multinli.train.zh.tsv", content))
    assert found == [TextExample("甲", "乙", 2), TextExample("丙", "丁", 0)]


def test_what_its_annotators_left_open_is_left_out_and_counted(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"sentence1": "甲", "sentence2": "乙", "label": label} for label in ("-", "neutral", "-")
    ]
    path = write("train.50k.json", "".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.INFO):
        assert read("ocnli", path) == [TextExample("甲", "乙", 1)]
    assert f"{path}: 2 examples of no agreed label are left out" in caplog.text
    # An open label is a rule of that task alone.
    with pytest.raises(UserError, match="line 1 has the label '-', which is none of entailment"):
        read("xnli", path)


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("csc", "label\ttext_a\n1\t好\n2\t好\n", "line 3 has the label '2', which is none of 0"),
        ("lcqmc", "甲\t乙\t1\n甲\t乙\t\n", "line 2 has the label '', which is none of 0, 1"),
        ("lcqmc", "1\t好\n", "line 1 has 2 columns where 3 are needed: text, pair, label"),
        ("bq", "sentence1\tlabel\n", "line 1 has no sentence2 or text_b"),
    ],
)  # fmt: skip
def test_a_wrong_line_of_a_table_is_named(
    write: Write, task: str, content: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(task, write("train.tsv", content))


def test_labels_of_numbers_and_blanks_around_them(write: Write) -> None:
    path = write(
        "train.json", '{"label": 116, "sentence": "好"}\n{"label": " 100 ", "sentence": ""}'
    )
    assert read("tnews", path) == [TextExample("好", None, 14), TextExample("", None, 0)]


TAGS = ("O", "B-PER", "I-PER")


def test_sentences_end_at_blank_lines_and_at_the_end(write: Write) -> None:
    path = write("train.txt", "甲 B-PER\n乙 I-PER\n\n \n\n丙\tO\r\nGDP  O")
    assert readers.read_entities(path, TAGS) == [
        EntityExample(("甲", "乙"), (1, 2)), EntityExample(("丙", "GDP"), (0, 0)),
    ]  # fmt: skip


@pytest.mark.parametrize("blank", [" ", "\u3000", "\xa0"])
def test_a_token_may_be_a_blank(write: Write, blank: str) -> None:
    found = readers.read_entities(write("train.txt", f"甲 O\n{blank} O\n乙 B-PER\n"), TAGS)
    assert found == [EntityExample(("甲", blank, "乙"), (0, 0, 1))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("乙", "line 2 is '乙'; a token, a blank and its tag are needed"),
        ("乙 丙 O", "line 2 is '乙 丙 O'; a token, a blank and its tag are needed"),
        ("乙 B-ORG", "line 2 has the tag 'B-ORG', which is none of O, B-PER, I-PER"),
    ],
)
def test_a_wrong_line_of_tags_is_named(write: Write, line: str, message: str) -> None:
    with pytest.raises(UserError, match=f"train.txt: {message}"):
        readers.read_entities(write("train.txt", f"甲 O\n{line}\n"), TAGS)


def squad(context: Any, *answers: Any, **entry: Any) -> str:
    given_answers = [{"text": text, "answer_start": start} for text, start in answers]
    qas = [{"id": " Q_1 ", "question": "谁？", "answers": given_answers, **entry}]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]})


def test_both_layouts_of_questions(write: Write) -> None:
    expected = [SpanExample("Q_1", "谁？", "是甲乙。", (Answer("甲乙", 1), Answer("乙", 2)))]
    path = write("dev.json", squad("是甲乙。", ("甲乙", 1), ("乙", 2)))
    assert readers.read_spans(path) == expected
    entry = {"query_id": "Q_1", "query_text": "谁？", "answers": ["甲乙", "乙"]}
    own = [{"context_id": "C", "context_text": "是甲乙。", "title": "", "qas": [entry]}]
    assert readers.read_spans(write("train.json", json.dumps(own))) == expected


@pytest.mark.parametrize("start", [0, 1, 3, 4, 99, -1, -5])
def test_a_wrong_start_is_mended_to_the_nearest_place(
    write: Write, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    context = "丙甲乙丁甲乙"
    with caplog.at_level(logging.INFO):
        (example,) = readers.read_spans(write("dev.json", squad(context, ("甲乙", start))))
    nearest = min((1, 4), key=lambda at: abs(at - start))
    assert example.answers == (Answer("甲乙", nearest),)
    told = "1 answers stand elsewhere than the file says; mended"
    assert (told in caplog.text) == (start not in (1, 4))


@settings(deadline=None)
@given(st.text("甲乙丙", max_size=12), st.text("甲乙", min_size=1, max_size=3), st.integers(-9, 15))
def test_an_answer_has_a_place_just_where_its_context_holds_it(
    tmp_path_factory: pytest.TempPathFactory, context: str, text: str, start: int
) -> None:
    path = tmp_path_factory.mktemp("spans") / "dev.json"
    path.write_text(squad(context, (text, start)), "utf-8")
    ((answer,),) = (example.answers for example in readers.read_spans(path))
    if text not in context:
        assert answer.start is None
        return
    places = [at for at in range(len(context)) if context[at : at + len(text)] == text]
    assert answer.start in places
    assert abs(answer.start - start) == min(abs(at - start) for at in places)


def test_an_answer_that_is_not_there_is_kept_for_judging_and_refused_for_training(
    write: Write,
) -> None:
    path = write("train.json", squad("是甲乙。", ("丙", 1)))
    examples = readers.read_spans(path)
    assert examples[0].answers == (Answer("丙", None),)
    with pytest.raises(UserError, match=r"train.json: the question Q_1 has the answer '丙', which"):
        readers.refuse_unplaced(path, examples)
    one_of_two = readers.read_spans(write("train.json", squad("是甲乙。", ("丙", 1), ("甲", 1))))
    readers.refuse_unplaced(path, one_of_two)


@pytest.mark.parametrize(
    "content",
    [
        '{"version": "1.0"}', "[1]", "7", '{"data": 3}', '[{"qas": [{"query_id": "Q"}]}]',
        squad("是甲", ("甲", None)), squad("是甲", ("甲", "first")), squad(None, ("甲", 1)),
        squad("是甲", ("甲", 1), question=None),
    ],
)  # fmt: skip
def test_another_layout_is_refused(write: Write, content: str) -> None:
    with pytest.raises(UserError, match=r"dev.json: neither in SQuAD's layout nor in CMRC 2018's"):
        readers.read_spans(write("dev.json", content))


def test_a_question_without_an_answer_is_refused(write: Write) -> None:
    with pytest.raises(UserError, match=r"dev.json: the question Q_1 has no answer; take it out"):
        readers.read_spans(write("dev.json", squad("是甲乙。")))


SHARED = Path(__file__).parents[4] / "shared/data/tasks"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/tasks is not here")
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("ocnli", "train.3k.json", 2994), ("ocnli", "dev.json", 2950),
        ("chnsenticorp", "train.tsv.gz", 9600), ("chnsenticorp", "dev.tsv", 1200),
    ],
)  # fmt: skip
def test_the_owners_tables_are_read_whole(name: str, file: str, count: int) -> None:
    examples = read(name, SHARED / name / file)
    assert len(examples) == count
    assert {example.label for example in examples} == set(range(len(TASKS[name].labels)))
    assert all(example.text for example in examples)
    assert all((example.pair is not None) == (name == "ocnli") for example in examples)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/tasks is not here")
def test_the_owners_questions_and_sentences_are_read_whole() -> None:
    for file, count, unplaced in (("trial.json", 1002, 0), ("dev.json.gz", 3219, 193)):
        examples = readers.read_spans(SHARED / "cmrc2018" / file)
        assert len(examples) == len({example.identity for example in examples}) == count
        answers = [(example, answer) for example in examples for answer in example.answers]
        # Some annotators of the dev file wrote an answer in words of their own.
        assert sum(answer.start is None for _, answer in answers) == unplaced
        assert all(example.context.startswith(a.text, a.start) for example, a in answers if a.start)
        readers.refuse_unplaced(Path(file), examples)
    labels = TASKS["peopledaily"].labels
    sentences = readers.read_entities(SHARED / "peopledaily/train.txt.gz", labels)
    assert len(sentences) == 18_484
    assert {tag for sentence in sentences for tag in sentence.tags} == set(range(len(labels)))
